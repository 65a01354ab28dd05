"""What the release before left behind is read, resumed and trained from, and no group twice."""

import hashlib
import json
import shutil
import threading
from collections import Counter
from pathlib import Path

import pytest
from asympo.chaos.auditor import audit
from asympo.chaos.evidence import Acknowledged, read_archive, read_journal, read_trained
from asympo.common import archive
from asympo.common.checkpoints.opening import open_policies
from asympo.common.codec import WireLimits, decode_group, encode_group
from asympo.common.jsonl import read_steps
from asympo.common.rollout_log import Broker, RunLog, RunState
from asympo.engines.of_run import sampling_of
from asympo.learner.state.open import open_states
from asympo.learner.state.saver import trained_ids_of
from asympo.local.broker import LocalBroker
from asympo.tasks import of_run
from asympo.tasks.tokenizer import load_tokenizer

from tests.compat.recording import FLAGS, RUN, put_back, task_flags
from tests.compat.release_before import RECORD, OldGenerator
from tests.integration.learner.process import STARTED, LearnerProcess
from tests.integration.learner.producer import make_group

UNKNOWN_FIELD = bytes([0xFA, 0x3F, 3]) + b"new"
"""Number 1023 of a message, which no release has yet."""
NUM_PROMPTS = 60


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    shutil.copytree(RECORD / "storage", tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def recorded(own_broker: LocalBroker, tmp_path: Path):  # type: ignore[no-untyped-def]
    put_back(RECORD, root=tmp_path.resolve(), url=own_broker.url)
    broker = Broker.connect(own_broker.url)
    yield RunLog(broker, RUN)
    broker.close()
    while STARTED:
        STARTED.pop().kill()


class _Answering(threading.Thread):
    """A generator of the release before; every other payload is as one of the release after writes it."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._broker = Broker.connect(url)
        self._generator = OldGenerator(self._broker, RUN)
        self.ended = threading.Event()
        self.acknowledged: list[Acknowledged] = []

    def run(self) -> None:
        self._generator.report('{"state": "generating", "policy_step": 5, "policy_fence": 1, "new": {}}')
        while not self.ended.is_set():
            lease = self._generator.acquire()
            if lease is None:
                self.ended.wait(0.02)
                continue
            token, group_id = lease
            payload = encode_group(make_group(group_id)) + UNKNOWN_FIELD * (len(self.acknowledged) % 2)
            outcome, sequence = self._generator.append(token, payload)
            if outcome == "LEASE_LOST":
                # A machine that stood still for the life of a lease; somebody else answers.
                continue
            assert outcome == "APPENDED"
            self.acknowledged.append(_acknowledged(group_id, sequence, payload))
        self._broker.close()


def _acknowledged(group_id: str, sequence: int, payload: bytes) -> Acknowledged:
    digest = hashlib.sha256(payload).hexdigest()
    return Acknowledged(
        group_id=group_id, sequence=sequence, digest=digest, producer="old-generator", at_seconds=0.0
    )


def test_storage_of_the_release_before_is_read(storage: Path) -> None:
    newest = open_policies(storage, RUN).newest(with_digests=True)
    assert newest is not None
    assert newest.step == 5
    states = open_states(storage, RUN)
    [name] = states.names()
    states.verify(name)
    state = states.read(name)
    assert (state.step, state.sequence) == (3, 13)
    assert len(trained_ids_of(state, num_prompts=NUM_PROMPTS)) == 13
    assert {tensor.partition(".")[0] for tensor in states.tensors(name)} == {"model", "optimizer", "rng"}
    entries = list(archive.open_archive(storage / RUN).entries())
    assert [entry.sequence for entry in entries] == list(range(1, 14))
    assert Counter(entry.outcome for entry in entries)[archive.EntryOutcome.DEAD_LETTER] == 2
    assert [row["step"] for row in read_steps(storage / RUN / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert [segment.step for segment in read_trained(storage / RUN / "trained.jsonl")] == [1, 2, 3, 4, 5]


def test_records_of_the_release_before_are_read() -> None:
    payload = (RECORD / "payload.bin").read_bytes()
    for content in (payload, payload + UNKNOWN_FIELD):
        assert decode_group(content, limits=WireLimits()) == make_group("0-1")
    assert encode_group(make_group("0-1")) == payload


def test_journal_with_and_without_what_is_new_is_read(tmp_path: Path) -> None:
    row = {"group_id": "0-1", "sequence": 1, "outcome": "appended", "payload_sha256": "00", "producer": "g"}
    rows = ({**row, "at_seconds": 1.5}, {**row, "sequence": 2, "at_seconds": 2.5, "new": [1]})
    path = tmp_path / "appends.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert [line.sequence for line in read_journal(path)] == [1, 2]


def test_generator_joins_a_run_of_the_release_before(recorded: RunLog, tmp_path: Path) -> None:
    config = recorded.state.config()
    assert config is not None
    task_config = of_run.task_config_of(config, task_path=None)
    task = of_run.load_same_task(config, task_config)
    of_run.check_tokenizer(config, load_tokenizer(str(tmp_path / "model")), task)
    assert sampling_of(config).max_tokens == 256
    assert recorded.stats.read().backlog > 0
    assert recorded.policies.latest() is not None
    assert [letter.sequence for letter in recorded.dead_letters.newest()] == [23, 16, 9, 2]


@pytest.mark.timeout(400)
def test_learner_resumes_a_run_of_the_release_before_and_trains_every_group_once(
    recorded: RunLog, own_broker: LocalBroker, tmp_path: Path
) -> None:
    root = tmp_path.resolve()
    flags = (*FLAGS, *task_flags(root))
    learner = LearnerProcess(url=own_broker.url, run=RUN, root=root, model=root / "model", flags=flags)
    generator = _Answering(own_broker.url)
    generator.start()
    try:
        assert learner.start().wait(300) == 0, learner.log
    finally:
        generator.ended.set()
        generator.join(30)
    assert recorded.stats.read().state is RunState.FINISHED
    last = recorded.commits.last()
    assert last is not None
    archived = read_archive(root / RUN, state_name=last.state_name)
    found = audit(
        acknowledged={"old-generator": generator.acknowledged},
        trained=read_trained(root / RUN / "trained.jsonl"),
        archived=archived,
        rollbacks=[],
        num_prompts=NUM_PROMPTS,
        num_epochs=1,
    )
    assert (found.trained_twice, found.lost, found.contradictions) == ((), (), ())
    dead = {row.group_id for row in archived if row.outcome == "dead_letter"}
    assert found.prompts_answered == NUM_PROMPTS - len(dead)
    assert len(generator.acknowledged) > 30
    parts = archive.open_archive(root / RUN).chain(archive.open_archive(root / RUN).newest_tip())
    assert [part.info.fence for part in parts][:2] == [1, 2]
