"""A learner that is told to stop twice, and one whose broker goes away: nothing is lost."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from asympo.common.errors import NoProgress
from asympo.common.jsonl import read_jsonl
from asympo.common.rollout_log import Broker, RunLog, RunState
from asympo.local.broker import LocalBroker
from asympo.run.audit import effective_segments

from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.producer import Producer

NUM_TRIES = 5


def freeze_in_a_save(learner: LearnerProcess) -> bool:
    """Tells it to stop and freezes it while a training state is half written; False when it was too late."""
    states = learner.root / learner.run / "train"
    states.mkdir(exist_ok=True)
    learner.send(signal.SIGTERM)
    deadline = time.monotonic() + 60
    while learner.is_running and time.monotonic() < deadline:
        if any(name.startswith(".tmp-") for name in os.listdir(states)):
            learner.send(signal.SIGSTOP)
            return any(name.startswith(".tmp-") for name in os.listdir(states))
    return False


@pytest.mark.timeout(300)
def test_second_signal_in_the_middle_of_a_save_ends_at_once_and_loses_nothing(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    learner = LearnerProcess(
        url=broker_url, run=run_name, root=tmp_path, model=tiny_model, flags=("--save-every", "1000")
    )
    broker = Broker.connect(broker_url)
    run_log, is_frozen = RunLog(broker, run_name), False
    with Producer(url=broker_url, run=run_name):
        for _ in range(NUM_TRIES):
            known = len(learner.rows)
            learner.start("--take-over")
            learner.until(lambda known=known: len(learner.rows) > known + 1)  # type: ignore[misc]
            if is_frozen := freeze_in_a_save(learner):
                break
        assert is_frozen, "no save was caught half done"
        before = run_log.commits.last()
        learner.send(signal.SIGTERM)
        learner.send(signal.SIGCONT)
        assert learner.wait(10) == 128 + signal.SIGTERM
        assert run_log.commits.last() == before, "what was half saved is not committed"
        step = max(row["step"] for row in learner.rows)
        learner.start("--take-over", "--total-steps", str(step + 2))
        assert learner.wait() == 0, learner.log
    assert run_log.state.get() is RunState.FINISHED
    segments = effective_segments(read_jsonl(tmp_path / run_name / "trained.jsonl"))
    trained = [group_id for segment in segments for group_id in segment["group_ids"]]
    commit = run_log.commits.last()
    assert commit is not None
    assert len(trained) == len(set(trained)) == commit.sequence, "none lost, none twice"
    broker.close()


@pytest.mark.timeout(200)
def test_learner_and_producer_go_on_by_themselves_after_the_broker_was_killed(
    own_broker: LocalBroker, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    learner = LearnerProcess(url=own_broker.url, run=run_name, root=tmp_path, model=tiny_model).start()
    with Producer(url=own_broker.url, run=run_name):
        learner.until(lambda: learner.reached(3))
        own_broker.kill()
        own_broker.start()
        step = max(row["step"] for row in learner.rows)
        learner.until(lambda: learner.reached(step + 4))
        assert learner.end(signal.SIGTERM) == 0, learner.log
    assert "Reconciled with the broker" in learner.log
    broker = Broker.connect(own_broker.url)
    run_log = RunLog(broker, run_name)
    commit, run_id = run_log.commits.last(), run_log.state.run_id()
    # And as the same run, where the broker has lost all of it meanwhile.
    own_broker.kill()
    shutil.rmtree(own_broker.directory / "appendonlydir")
    own_broker.start()
    learner.start()
    learner.until(run_log.state.run_id)
    assert run_log.state.run_id() == run_id
    learner.end(signal.SIGKILL)
    broker.close()
    assert commit is not None
    trained = [g for row in read_jsonl(tmp_path / run_name / "trained.jsonl") for g in row["group_ids"]]
    assert len(trained) == len(set(trained)) == commit.sequence


@pytest.mark.timeout(200)
def test_drain_that_is_held_up_ends_at_its_deadline_and_loses_nothing(
    own_broker: LocalBroker, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    flags = ("--drain-seconds", "2", "--share-prefixes", "never")
    learner = LearnerProcess(
        url=own_broker.url, run=run_name, root=tmp_path, model=tiny_model, flags=flags
    ).start()
    with Producer(url=own_broker.url, run=run_name):
        learner.until(lambda: learner.reached(4))
        own_broker.send(signal.SIGSTOP)
        asked_at = time.monotonic()
        assert learner.end(signal.SIGTERM) == NoProgress.exit_code, learner.log
        assert 2 <= time.monotonic() - asked_at < 15, "far below what it has unasked"
        assert learner.count("Not closed 2 s after SIGTERM, ") == 1
        own_broker.send(signal.SIGCONT)
        step = max(row["step"] for row in learner.rows)
        learner.start("--take-over", "--total-steps", str(step + 3))
        assert learner.wait() == 0, learner.log
    broker = Broker.connect(own_broker.url)
    commit = RunLog(broker, run_name).commits.last()
    broker.close()
    assert commit is not None
    segments = effective_segments(read_jsonl(tmp_path / run_name / "trained.jsonl"))
    trained = [group_id for segment in segments for group_id in segment["group_ids"]]
    assert len(trained) == len(set(trained)) == commit.sequence, "none lost, none twice"
