import threading
import time

import pytest
from asympo.common.errors import BrokerUnavailable
from asympo.common.rollout_log import Lease, RefusalReason, Refused, RunLog, RunState, permuted_index

from .conftest import config_of, let_expire, must_append, must_lease, start_run


def refusal(log: RunLog, *, policy_step: int = 0) -> Refused:
    refused = log.leases.acquire(holder="gen-0", policy_step=policy_step)
    assert isinstance(refused, Refused), refused
    return refused


@pytest.mark.parametrize("num_prompts", [1, 2, 7, 64, 65])
def test_leases_follow_the_permutation_epoch_after_epoch(log: RunLog, num_prompts: int) -> None:
    start_run(log, num_prompts=num_prompts, groups_per_step=200, max_groups_per_step=200, seed=-11)
    leases = [must_lease(log) for _ in range(2 * num_prompts)]
    expected = [
        (epoch, permuted_index(seed=-11, epoch=epoch, position=position, num_prompts=num_prompts))
        for epoch in (0, 1)
        for position in range(num_prompts)
    ]
    assert [(lease.epoch, lease.index) for lease in leases] == expected
    assert [lease.group_id for lease in leases] == [f"{epoch}-{index}" for epoch, index in expected]
    assert len({lease.token for lease in leases}) == len(leases)


def test_leases_tell_how_many_steps_the_newest_learner_was_told_to_make(log: RunLog) -> None:
    start_run(log)
    assert must_lease(log).total_steps == 0
    for total_steps in (7, 9, None):
        log.fence.take("again", take_over=True, total_steps=total_steps)
        assert must_lease(log).total_steps == log.state.total_steps() == (total_steps or 0)


def test_leases_stop_at_capacity_and_count_open_groups(log: RunLog) -> None:
    learner = start_run(log, groups_per_step=2, max_groups_per_step=2)
    for _ in range(3):
        must_append(log)
    must_lease(log)
    assert refusal(log).reason == RefusalReason.NO_CAPACITY
    learner.consume(1)
    must_lease(log)
    assert refusal(log).reason == RefusalReason.NO_CAPACITY


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (RunState.CREATED, RefusalReason.NOT_STARTED),
        (RunState.DRAINING, RefusalReason.PAUSED),
        (RunState.FINISHED, RefusalReason.RUN_ENDED),
        (RunState.FAILED, RefusalReason.RUN_ENDED),
    ],
)
def test_leases_are_refused_with_the_reason_when_the_run_does_not_run(
    log: RunLog, state: RunState, reason: RefusalReason
) -> None:
    learner = start_run(log)
    log.state.set(state, fence=learner.fence)
    assert refusal(log).reason == reason


def test_leases_wait_for_the_first_policy(log: RunLog) -> None:
    log.state.create_or_join(config_of(log.run))
    log.state.set(RunState.RUNNING)
    assert refusal(log).reason == RefusalReason.NOT_STARTED


def test_leases_go_only_to_holders_of_the_latest_policy_when_synchronous(log: RunLog) -> None:
    learner = start_run(log, max_staleness=0)
    must_lease(log, policy_step=0)
    log.policies.announce(learner.fence, step=1, digest="d1")
    assert refusal(log, policy_step=0).reason == RefusalReason.STALE_POLICY
    assert refusal(log, policy_step=2).reason == RefusalReason.STALE_POLICY
    must_lease(log, policy_step=1)


def test_leases_are_refused_to_a_holder_too_stale_to_append(log: RunLog) -> None:
    learner = start_run(log, max_generation_staleness=1)
    for step in (5, 10):
        log.policies.announce(learner.fence, step=step, digest=f"d{step}")
    assert refusal(log, policy_step=0).reason == RefusalReason.STALE_POLICY
    must_lease(log, policy_step=5)


def test_expired_lease_returns_its_prompt_first(log: RunLog) -> None:
    start_run(log)
    lost = must_lease(log)
    must_append(log)
    let_expire(log, lost)
    again = must_lease(log, holder="gen-1")
    assert again.group_id == lost.group_id
    assert again.token != lost.token
    assert log.stats.read().lease_expiries == 1


def test_renewed_lease_outlives_lease_seconds_but_not_its_maximum(log: RunLog) -> None:
    start_run(log, lease_seconds=100.0, max_lease_seconds=200.0)
    lease = must_lease(log)

    def seconds_left_when_granted(seconds_ago: float) -> float:
        """Of a lease that would have ended in 50 s, renewed so long after its grant."""
        now_ms = 1000 * log.stats.read().server_time_seconds
        stored = f"{lease.group_id}|0|{now_ms - 1000 * seconds_ago:.0f}|gen-0"
        log.broker.command("HSET", log.access.key("leases"), lease.token, stored)
        log.broker.command("ZADD", log.access.key("deadlines"), now_ms + 50_000, lease.token)
        assert log.leases.renew([lease]) == []
        return (float(log.broker.command("ZSCORE", log.access.key("deadlines"), lease.token)) - now_ms) / 1000

    assert 100 <= seconds_left_when_granted(60) < 130
    assert seconds_left_when_granted(180) == pytest.approx(20, abs=0.01)
    assert seconds_left_when_granted(210) == pytest.approx(-10, abs=0.01)
    assert log.leases.renew([lease]) == [lease]


def test_renew_names_exactly_the_lost_ones(log: RunLog) -> None:
    start_run(log)
    kept, handed_back, answered = must_lease(log), must_lease(log), must_lease(log)
    log.leases.hand_back(handed_back, reason="stopping")
    must_append(log, answered)
    assert log.leases.renew([kept, handed_back, answered]) == [handed_back, answered]
    assert log.leases.renew([]) == []


def test_handed_back_prompt_is_issued_again_and_not_blamed(log: RunLog) -> None:
    start_run(log, max_prompt_failures=1)
    lease = must_lease(log)
    assert log.leases.hand_back(lease, reason="shutting down")
    assert not log.leases.hand_back(lease, reason="shutting down")
    assert must_lease(log).group_id == lease.group_id
    assert (log.stats.read().prompt_failures, log.stats.read().prompts_set_aside) == (0, 0)


def test_failing_prompt_is_set_aside_after_its_limit(log: RunLog) -> None:
    start_run(log, max_prompt_failures=3)
    failed = []
    for _ in range(3):
        lease = must_lease(log)
        failed.append(lease.group_id)
        log.leases.hand_back(lease, reason="the reward function raised", is_prompt_failure=True)
    assert len(set(failed)) == 1
    assert must_lease(log).group_id != failed[0]
    assert (log.stats.read().prompt_failures, log.stats.read().prompts_set_aside) == (3, 1)


def test_leases_end_with_the_last_epoch_and_the_run_when_all_is_committed(log: RunLog) -> None:
    learner = start_run(log, num_prompts=3, num_epochs=1)
    held = [must_lease(log) for _ in range(3)]
    assert refusal(log).reason == RefusalReason.NO_PROMPTS
    assert not log.stats.read().is_exhausted
    for lease in held:
        must_append(log, lease)
    assert log.stats.read().is_exhausted
    learner.commit([entry.group_id for entry in learner.consume(2)])
    assert log.state.get() == RunState.RUNNING
    learner.commit([entry.group_id for entry in learner.consume(2)])
    assert log.state.get() == RunState.FINISHED
    assert refusal(log).reason == RefusalReason.RUN_ENDED


def waited_seconds(log: RunLog, refused: Refused | None, timeout_seconds: float = 60.0) -> float:
    began = time.monotonic()
    log.leases.wait_for_slot(timeout_seconds, refused=refused)
    return time.monotonic() - began


@pytest.mark.parametrize("event", ["free", "hand_back", "state", "refused append"])
def test_refused_asker_wakes_on_an_event(log: RunLog, event: str) -> None:
    learner = start_run(log, groups_per_step=1, max_groups_per_step=1, max_generation_staleness=5)
    must_append(log)
    lease = must_lease(log)

    def happen() -> None:
        if event == "free":
            learner.consume(1)
        elif event == "hand_back":
            log.leases.hand_back(lease, reason="stopping")
        elif event == "state":
            log.state.set(RunState.DRAINING)
        else:
            for step in range(1, 8):
                log.policies.announce(learner.fence, step=step, digest="d")
            log.leases.append(lease, b"x", producer="gen-0")

    refused = refusal(log)
    timer = threading.Timer(0.2, happen)
    timer.start()
    assert 0.1 < waited_seconds(log, refused) < 30
    timer.join()


def test_asker_with_a_stale_policy_wakes_on_an_announcement_and_one_without_a_slot_sleeps_on(
    log: RunLog,
) -> None:
    learner = start_run(log, groups_per_step=1, max_groups_per_step=1, max_staleness=0)
    refused = log.leases.acquire(holder="gen-1", policy_step=-1)
    assert isinstance(refused, Refused)
    assert refused.reason is RefusalReason.STALE_POLICY
    must_lease(log)
    without_slot = refusal(log)
    assert without_slot.reason is RefusalReason.NO_CAPACITY
    timer = threading.Timer(0.2, lambda: log.policies.announce(learner.fence, step=1, digest="d1"))
    timer.start()
    assert 0.1 < waited_seconds(log, refused) < 30
    timer.join()
    assert waited_seconds(log, refused) < 30, "the announcement came before this wait"
    assert waited_seconds(log, without_slot, 0.3) > 0.25, "an announcement frees no slot"


def test_refused_asker_does_not_miss_an_event_before_it_waits(log: RunLog) -> None:
    learner = start_run(log, groups_per_step=1, max_groups_per_step=1, max_staleness=0)
    refused = must_append(log).no_slot
    assert refused == refusal(log), "an append says what an asker would be told"
    learner.consume(1)
    assert waited_seconds(log, refused) < 30


def test_refused_asker_wakes_when_a_lease_is_about_to_expire(log: RunLog) -> None:
    start_run(log, groups_per_step=2, max_groups_per_step=2, max_staleness=0, lease_seconds=3.0)
    lost, answered = must_lease(log), must_lease(log)
    refused = must_append(log, answered).no_slot
    assert refused is not None
    assert 0 < refused.retry_after_seconds < 3.1
    assert waited_seconds(log, refused) < 30
    assert must_lease(log).group_id == lost.group_id


def test_wait_for_slot_gives_up_after_its_time_out(log: RunLog) -> None:
    start_run(log)
    assert 0.15 < waited_seconds(log, None, 0.2) < 30


def test_acquire_twice_with_one_token_grants_one_lease(log: RunLog) -> None:
    """What redis-py does when the reply to the first call is lost."""
    start_run(log)
    first, second = (log.access.call("acquire", "t" * 32, 0, "gen-0") for _ in range(2))
    assert first[:2] == second[:2]
    assert (log.stats.read().leases, log.stats.read().leases_granted) == (1, 1)


def test_concurrent_askers_never_share_a_prompt_nor_pass_capacity(log: RunLog) -> None:
    start_run(log, groups_per_step=20, max_groups_per_step=20, num_prompts=1000)
    granted: list[Lease] = []

    def ask() -> None:
        while isinstance(lease := log.leases.acquire(holder="gen", policy_step=0), Lease):
            granted.append(lease)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == len({lease.group_id for lease in granted}) == 40


def test_unreachable_broker_is_reported_as_such(log: RunLog) -> None:
    from asympo.common.rollout_log import Broker

    with pytest.raises(BrokerUnavailable, match="does not answer"):
        Broker.connect("redis://127.0.0.1:1/0", max_retries=1, backoff_base_seconds=0.01)
