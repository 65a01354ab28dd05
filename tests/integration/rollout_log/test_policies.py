import threading
import time

from asympo.common.rollout_log import RunLog, queue_staleness

from .conftest import must_append, start_run


def test_latest_policy_is_the_last_one_announced(log: RunLog) -> None:
    assert log.policies.latest() is None
    learner = start_run(log)
    announced = log.policies.announce(learner.fence, step=4, digest="d4")
    assert log.policies.latest() == announced
    assert (announced.step, announced.fence, announced.digest) == (4, 1, "d4")


def test_announcing_the_newest_policy_again_changes_nothing(log: RunLog) -> None:
    learner = start_run(log)
    first = log.policies.announce(learner.fence, step=1, digest="d1")
    assert log.policies.announce(learner.fence, step=1, digest="d1") == first
    assert log.stats.read().policies_published == 2


def test_policy_is_announced_under_the_fence_that_it_was_published_under(log: RunLog) -> None:
    start_run(log)
    fence = log.fence.take("learner-1", take_over=True)
    announced = log.policies.announce(fence, step=1, digest="d1", policy_fence=1)
    assert announced == log.policies.latest()
    assert (fence.number, announced.fence) == (2, 1)


def test_wait_for_policy_returns_the_moment_one_is_announced(log: RunLog) -> None:
    learner = start_run(log)
    seen = log.policies.latest()
    timer = threading.Timer(0.2, lambda: log.policies.announce(learner.fence, step=1, digest="d1"))
    timer.start()
    began = time.monotonic()
    policy = log.policies.wait(seen, 60)
    assert policy is not None
    assert policy.step == 1
    assert 0.1 < time.monotonic() - began < 30
    timer.join()


def test_wait_for_policy_does_not_miss_one_announced_before_the_wait(log: RunLog) -> None:
    start_run(log)
    policy = log.policies.wait(None, 5)
    assert policy is not None
    assert policy.step == 0
    assert log.policies.wait(policy, 0.1) is None


def test_learner_that_resumed_from_an_older_state_announces_its_step_under_its_fence(log: RunLog) -> None:
    learner = start_run(log)
    for step in (1, 2, 3):
        log.policies.announce(learner.fence, step=step, digest=f"d{step}")
    fence = log.fence.take("learner-1", take_over=True)
    log.policies.announce(fence, step=2, digest="again")
    latest = log.policies.latest()
    assert latest is not None
    assert (latest.step, latest.fence) == (2, 2)
    assert log.leases.append(must_lease_at(log, 3), b"x", producer="p").generation_staleness == 0


def must_lease_at(log: RunLog, policy_step: int):  # type: ignore[no-untyped-def]
    lease = log.leases.acquire(holder="g", policy_step=policy_step)
    assert hasattr(lease, "token"), lease
    return lease


def test_queue_staleness_counts_policies_announced_after_the_append(log: RunLog) -> None:
    learner = start_run(log)
    must_append(log)
    time.sleep(0.005)
    for step in (1, 2):
        log.policies.announce(learner.fence, step=step, digest=f"d{step}")
    time.sleep(0.005)
    must_append(log)
    old, new = log.reader.iter_entries()
    times = log.policies.publish_times()
    assert len(times) == 3
    assert [queue_staleness(entry.appended_at_seconds, times) for entry in (old, new)] == [2, 0]


def test_queue_staleness_stays_within_max_staleness_when_every_slot_is_used(log: RunLog) -> None:
    learner = start_run(log, groups_per_step=2, max_groups_per_step=2, max_staleness=2, publish_every=2)
    worst, step = 0, 0
    for _ in range(10):
        while hasattr(lease := log.leases.acquire(holder="g", policy_step=0), "token"):
            must_append(log, lease)  # type: ignore[arg-type]
        ids = []
        for _ in range(2):
            times = log.policies.publish_times()
            entries = log.reader.read(after_sequence=learner.sequence, max_count=2, block_seconds=1)
            worst = max(worst, *(queue_staleness(entry.appended_at_seconds, times) for entry in entries))
            learner.sequence = entries[-1].sequence
            ids += [entry.group_id for entry in entries]
            step += 1
        time.sleep(0.002)
        log.policies.announce(learner.fence, step=step, digest=f"d{step}")
        time.sleep(0.002)
        log.commits.free(learner.fence, ids)
        learner.commit(ids)
    assert worst == 2


def test_bad_policy_is_known_to_everyone_with_its_first_reason(log: RunLog) -> None:
    log.policies.mark_bad(step=3, fence=1, reason="the probe differs: -2.4 for -2.6", holder="gen-0")
    log.policies.mark_bad(step=3, fence=1, reason="another", holder="gen-1")
    (bad,) = log.policies.bad()
    assert (bad.step, bad.fence, bad.holder) == (3, 1, "gen-0")
    assert bad.reason.startswith("the probe differs")


def test_presence_is_listed_until_it_expires_or_leaves(log: RunLog) -> None:
    log.presence.report("gen-0", {"state": "serving", "policy_step": 3}, ttl_seconds=300)
    log.presence.report("gen-1", {"state": "serving"}, ttl_seconds=300)
    log.presence.report("gen-2", {"state": "serving"}, ttl_seconds=300)
    log.presence.report("gen-2", {}, ttl_seconds=0)
    log.broker.command("ZADD", log.access.key("presence_until"), 1, "gen-1")
    (present,) = log.presence.generators()
    assert (present["holder"], present["policy_step"]) == ("gen-0", 3)
    assert 200 < present["expires_in_seconds"] <= 300
