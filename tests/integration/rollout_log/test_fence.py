from collections.abc import Callable

import pytest
from asympo.common.errors import BrokerChanged, Fenced, RunHasLearner
from asympo.common.rollout_log import CommitRecord, Fence, LogEntry, RunLog, RunState
from asympo.common.trained_ids import TrainedIds

from .conftest import config_of, let_heartbeat_expire, must_append, start_run

ENTRY = LogEntry(
    sequence=1, group_id="0-1", producer="p", payload=b"x", entry_id="1-0", appended_at_seconds=0.0
)

LEARNER_SCRIPTS: dict[str, Callable[[RunLog, Fence], object]] = {
    "heartbeat": lambda log, fence: log.fence.heartbeat(fence),
    "read": lambda log, fence: log.reader.read(after_sequence=0, max_count=1, block_seconds=0, fence=fence),
    "free": lambda log, fence: log.commits.free(fence, ["0-1"]),
    "commit": lambda log, fence: log.commits.commit(
        fence, sequence=1, state_name="s", step=1, group_ids=["0-1"]
    ),
    "dead_letter": lambda log, fence: log.dead_letters.add(fence, ENTRY, "bad"),
    "announce_policy": lambda log, fence: log.policies.announce(fence, step=9, digest="d9"),
    "set_state": lambda log, fence: log.state.set(RunState.FAILED, fence=fence),
    "reconcile": lambda log, fence: log.reconciler.reconcile(
        fence, committed=None, trained=TrainedIds(num_prompts=50)
    ),
}


def test_fence_is_refused_while_a_heartbeat_is_alive_and_names_the_holder(log: RunLog) -> None:
    start_run(log)
    with pytest.raises(RunHasLearner, match=r"learner-0.*--take-over"):
        log.fence.take("learner-1")


def test_fence_grows_with_every_owner(log: RunLog) -> None:
    first = start_run(log).fence
    second = log.fence.take("learner-1", take_over=True)
    log.fence.release(second)
    third = log.fence.take("learner-2")
    assert [first.number, second.number, third.number] == [1, 2, 3]
    assert len({first.token, second.token, third.token}) == 3


def test_fence_is_free_after_its_heartbeat_expired(log: RunLog) -> None:
    log.state.create_or_join(config_of(log.run))
    log.fence.take("learner-0", heartbeat_seconds=30.0)
    with pytest.raises(RunHasLearner):
        log.fence.take("learner-1")
    let_heartbeat_expire(log)
    assert log.fence.take("learner-1").number == 2


def test_fence_is_kept_by_heartbeats(log: RunLog) -> None:
    log.state.create_or_join(config_of(log.run))
    fence = log.fence.take("learner-0", heartbeat_seconds=30.0)
    let_heartbeat_expire(log)
    log.fence.heartbeat(fence)
    with pytest.raises(RunHasLearner):
        log.fence.take("learner-1")


def test_fence_starts_above_every_number_on_disk(log: RunLog) -> None:
    assert log.fence.take("learner-0", at_least=41).number == 42


@pytest.mark.parametrize("script", LEARNER_SCRIPTS)
def test_every_learner_script_is_refused_to_a_zombie_and_changes_nothing(log: RunLog, script: str) -> None:
    zombie = start_run(log)
    must_append(log)
    log.fence.take("learner-1", take_over=True)
    before = log.stats.read()
    with pytest.raises(Fenced, match="belongs to fence 2 \\(learner-1\\)"):
        LEARNER_SCRIPTS[script](log, zombie.fence)
    after = log.stats.read()
    ignored = {"server_time_seconds": 0.0}
    assert {**_fields(before), **ignored} == {**_fields(after), **ignored}


@pytest.mark.parametrize("script", LEARNER_SCRIPTS)
def test_every_learner_script_checks_the_token_and_not_only_the_number(log: RunLog, script: str) -> None:
    import dataclasses

    learner = start_run(log)
    forged = dataclasses.replace(learner.fence, token="0" * 32)
    with pytest.raises(Fenced):
        LEARNER_SCRIPTS[script](log, forged)


def test_release_by_a_zombie_does_not_free_the_run(log: RunLog) -> None:
    zombie = start_run(log)
    log.fence.take("learner-1", take_over=True)
    log.fence.release(zombie.fence)
    with pytest.raises(RunHasLearner, match="learner-1"):
        log.fence.take("learner-2")


def test_take_fence_twice_with_one_token_takes_one_number(log: RunLog) -> None:
    arguments = ("t" * 32, "learner-0", 10_000, 0, 0)
    first, second = (log.access.call("take_fence", *arguments) for _ in range(2))
    assert first == second


def test_reconcile_on_a_start_moves_above_the_fence_of_the_training_state(log: RunLog) -> None:
    learner = start_run(log)
    committed = CommitRecord(sequence=0, state_name="s", step=0, fence=7)
    report = log.reconciler.reconcile(learner.fence, committed=committed, trained=learner.trained)
    assert report.fence.number == 8
    log.fence.heartbeat(report.fence)
    with pytest.raises(BrokerChanged):
        log.fence.heartbeat(learner.fence)


def test_learner_of_a_run_that_was_deleted_does_not_take_the_new_one_of_its_name(log: RunLog) -> None:
    start_run(log)
    frozen = log.fence.take("learner-1", take_over=True)
    log.state.delete()
    with pytest.raises(Fenced, match=r"was deleted.*this learner must stop"):
        log.reconciler.reconcile(frozen, committed=None, trained=TrainedIds(num_prompts=50))
    assert log.state.config() is None, "a broker that did not restart has lost nothing"
    owner = start_run(log).fence
    assert owner.number < frozen.number
    with pytest.raises(BrokerChanged):
        log.fence.heartbeat(frozen)
    with pytest.raises(Fenced):
        log.reconciler.reconcile(frozen, committed=None, trained=TrainedIds(num_prompts=50))
    log.fence.heartbeat(owner)


def _fields(stats: object) -> dict[str, object]:
    import dataclasses

    return dataclasses.asdict(stats)  # type: ignore[call-overload]
