"""Parts of two releases in one run at the same time: whoever leases, appends, reads and commits."""

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from asympo.common.rollout_log import Broker, Lease, RunLog, RunState
from asympo.common.rollout_log.leases import MIN_APART_BYTES
from asympo.common.trained_ids import TrainedIds

from tests.compat.release_before import RECORD, OldGenerator, OldLearner
from tests.integration.rollout_log.conftest import config_of

NUM_PROMPTS = 50
LIMITS = "capacity max_staleness max_prompt_failures seed num_prompts num_epochs model"


@pytest.fixture
def log(broker_url: str, run_name: str) -> Iterator[RunLog]:
    broker = Broker.connect(broker_url)
    yield RunLog(broker, run_name)
    broker.close()


def create_as_before(log: RunLog, **settings: Any) -> None:
    """A run of the release before, as its learner creates it."""
    config = config_of(log.run, schema_version=1, script_version=2, **settings)
    fields = {name: getattr(config, name) for name in LIMITS.split()}
    lease_ms, max_lease_ms = (int(1000 * each) for each in (config.lease_seconds, config.max_lease_seconds))
    fields |= {"lease_ms": lease_ms, "max_lease_ms": max_lease_ms, "max_generation_staleness": -1}
    keys = [log.access.key(noun) for noun in ("config", "run", "wake")]
    source = (RECORD / "scripts/create.lua").read_text()
    flat = [part for field in fields.items() for part in field]
    assert log.broker.command("EVAL", source, 3, *keys, config.to_json(), *flat)[0] == b"CREATED"


class NewGenerator:
    """The same calls as OldGenerator's, of this build."""

    holder = "new-generator"

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._leases: dict[str, Lease] = {}

    def acquire(self) -> tuple[str, str] | None:
        policy = self._log.policies.latest()
        lease = self._log.leases.acquire(holder=self.holder, policy_step=policy.step if policy else 0)
        if not isinstance(lease, Lease):
            return None
        self._leases[lease.token] = lease
        return lease.token, lease.group_id

    def append(self, token: str, payload: bytes) -> tuple[str, int]:
        result = self._log.leases.append(self._leases[token], payload, producer=self.holder)
        return result.outcome.value.upper(), result.sequence or 0

    def renew(self, token: str) -> bool:
        return self._log.leases.renew([self._leases[token]]) == []

    def hand_back(self, token: str) -> bool:
        return self._log.leases.hand_back(self._leases[token], reason="stopping")

    def report(self, status: str) -> None:
        self._log.presence.report(self.holder, {}, ttl_seconds=60)


class Reading:
    """What both learners leave to the next one: cursor, ids, durable state."""

    def __init__(self, num_prompts: int) -> None:
        self.trained = TrainedIds(num_prompts=num_prompts)
        self.sequence = 0
        self.step = 0
        self.consumed: list[str] = []

    def consume(self, sequence: int, group_id: str) -> None:
        assert sequence == self.sequence + 1
        assert self.trained.add(group_id), f"{group_id} would be trained twice"
        self.sequence = sequence
        self.consumed.append(group_id)


class OldLearning:
    """A learner of the release before that takes the run over, reads, commits, announces."""

    def __init__(self, log: RunLog, reading: Reading) -> None:
        self._reading = reading
        self._learner = OldLearner(log.broker, log.run)
        record = log.commits.last()
        values = (record.sequence, record.state_name, record.step, record.fence) if record else (0, "", 0, 0)
        self._learner.take(committed=values, consumed=reading.sequence)

    def work(self) -> None:
        reading = self._reading
        self._learner.heartbeat()
        entries = self._learner.read(reading.sequence, 4)
        for sequence, group_id, _ in entries:
            reading.consume(sequence, group_id)
        group_ids = [group_id for _, group_id, _ in entries]
        reading.step += 1
        self._learner.announce(step=reading.step, digest=f"d{reading.step}")
        if group_ids:
            self._learner.free(group_ids, sequence=reading.sequence)
            self._learner.commit(group_ids, sequence=reading.sequence, step=reading.step)

    def leave(self) -> None:
        self._learner.release()


class NewLearning:
    """The same of this build."""

    def __init__(self, log: RunLog, reading: Reading) -> None:
        self._log, self._reading = log, reading
        fence = log.fence.take("new", take_over=True)
        self._fence = log.reconciler.reconcile(
            fence, committed=log.commits.last(), trained=reading.trained
        ).fence

    def work(self) -> None:
        reading, fence = self._reading, self._fence
        entries = self._log.reader.read(
            after_sequence=reading.sequence, max_count=4, block_seconds=0, fence=fence
        )
        for entry in entries:
            reading.consume(entry.sequence, entry.group_id)
        reading.step += 1
        self._log.policies.announce(fence, step=reading.step, digest=f"d{reading.step}")
        group_ids = [entry.group_id for entry in entries]
        state = {"sequence": reading.sequence, "state_name": f"step-{reading.step}", "step": reading.step}
        if group_ids:
            self._log.commits.free(fence, group_ids, trained_sequence=reading.sequence)
            self._log.commits.commit(fence, **state, group_ids=group_ids)  # type: ignore[arg-type]

    def leave(self) -> None:
        self._log.fence.release(self._fence)


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_of_two_releases_answer_and_train_every_prompt_once(log: RunLog, seed: int) -> None:
    rng = random.Random(seed)
    create_as_before(log, num_prompts=NUM_PROMPTS, num_epochs=1, lease_seconds=600.0)
    log.state.create_or_join(config_of(log.run, num_prompts=NUM_PROMPTS, num_epochs=1, lease_seconds=600.0))
    log.broker.command("HSET", f"asympo:{{{log.run}}}:run", "of_a_later_release", "1")
    reading = Reading(NUM_PROMPTS)
    learner: OldLearning | NewLearning = NewLearning(log, reading)
    learner.work()
    log.state.set(RunState.RUNNING)
    generators: list[OldGenerator | NewGenerator] = [OldGenerator(log.broker, log.run), NewGenerator(log)]
    held: list[tuple[OldGenerator | NewGenerator, str]] = []
    payload = b"p" * MIN_APART_BYTES
    answered: Counter[str] = Counter()
    while log.state.get() is RunState.RUNNING:
        generator = rng.choice(generators)
        generator.report('{"later": true}')
        if (lease := generator.acquire()) is not None:
            held.append((generator, lease[0]))
        if held and rng.random() < 0.8:
            holder, token = held.pop(rng.randrange(len(held)))
            assert holder.renew(token)
            if rng.random() < 0.2:
                assert holder.hand_back(token)
            else:
                assert holder.append(token, payload)[0] == "APPENDED"
                assert holder.append(token, payload)[0] == "DUPLICATE"
                answered[holder.holder] += 1
        if rng.random() < 0.1:
            learner.leave()
            learner = rng.choice((OldLearning, NewLearning))(log, reading)
        if rng.random() < 0.4 or lease is None:
            learner.work()
    assert sorted(reading.consumed) == sorted(f"0-{index}" for index in range(NUM_PROMPTS))
    assert min(answered["old-generator"], answered["new-generator"]) > 5
    assert {each["holder"] for each in log.presence.generators()} == {"old-generator", "new-generator"}
    log.state.delete()


def test_zombie_of_the_release_before_is_refused(log: RunLog) -> None:
    create_as_before(log)
    reading = Reading(NUM_PROMPTS)
    old = OldLearning(log, reading)
    NewLearning(log, reading)
    with pytest.raises(PermissionError, match="FENCED"):
        old.work()
    log.state.delete()
