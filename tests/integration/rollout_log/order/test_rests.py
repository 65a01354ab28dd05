"""Prompts that rest: the first lease of an epoch settles which, and that holds whatever happens then."""

from pathlib import Path

from asympo.common.rollout_log import RunLog, permuted_index
from asympo.common.trained_ids import TrainedIds
from asympo.local.broker import LocalBroker

from ..conftest import Learner, must_append, must_lease, start_run
from ..test_reconcile import OldState, log, mortal, reconcile

__all__ = ["log", "mortal"]

ORDER = {"order": "by-success"}
NUM_PROMPTS = 10_000
"""More than one piece of what rests holds."""


def bits_of(resting: set[int], num_prompts: int) -> bytes:
    return sum(1 << index for index in resting).to_bytes((num_prompts + 7) // 8, "little")


def order_of(epoch: int, num_prompts: int, resting: set[int]) -> list[int]:
    order = (
        permuted_index(seed=3, epoch=epoch, position=position, num_prompts=num_prompts)
        for position in range(num_prompts)
    )
    return [index for index in order if index not in resting]


def issue(log: RunLog, epoch: int, num_prompts: int = 8) -> list[int]:
    """Answers every prompt that is issued, up to the end of an epoch; which ones they were."""
    found = []
    while ((stats := log.stats.read()).epoch, stats.position) < (epoch, num_prompts):
        lease = must_lease(log)
        found.append(lease.index)
        must_append(log, lease)
    return found


def start(log: RunLog, *, num_prompts: int, num_epochs: int = 3) -> Learner:
    limits = {"groups_per_step": num_prompts * 3, "max_groups_per_step": num_prompts * 3}
    return start_run(log, num_prompts=num_prompts, num_epochs=num_epochs, task=ORDER, **limits)


def skip_to_end(log: RunLog, learner: Learner, epoch: int, num_prompts: int) -> None:
    """As if all prompts up to the end of an epoch had been asked and answered."""
    for each in range(epoch + 1):
        learner.trained.rest(each, bits_of(set(range(num_prompts)), num_prompts))
    log.broker.command("HSET", log.access.key("run"), "epoch", epoch, "position", num_prompts)


def test_epoch_is_the_permutation_without_those_that_rest(log: RunLog) -> None:
    learner = start(log, num_prompts=NUM_PROMPTS)
    resting = {index for index in range(NUM_PROMPTS) if index % 500}
    skip_to_end(log, learner, 0, NUM_PROMPTS)
    begun = log.rests.propose(learner.fence, epoch=1, bits=bits_of(resting, NUM_PROMPTS), keep_from=0)
    assert begun == 0
    assert issue(log, 1, NUM_PROMPTS) == order_of(1, NUM_PROMPTS, resting)


def test_what_rests_outlives_a_learner_killed_before_the_first_lease_or_after_it(
    log: RunLog,
) -> None:
    learner = start(log, num_prompts=8)
    issue(log, 0)
    learner.consume(8)
    learner.commit([])
    durable, committed = learner.trained.copy(), log.commits.last()
    log.rests.propose(learner.fence, epoch=1, bits=bits_of({1, 2, 3}, 8), keep_from=1)

    def again(trained: TrainedIds) -> Learner:
        fence = log.fence.take("again", take_over=True)
        report = log.reconciler.reconcile(fence, committed=committed, trained=trained)
        return Learner(log=log, fence=report.fence, trained=trained, sequence=8, step=1)

    learner = again(durable.copy())  # killed between proposal and first lease
    assert learner.trained.resting() == {}, "nothing has been settled"
    first = must_lease(log)
    assert log.rests.propose(learner.fence, epoch=1, bits=bits_of({5, 6}, 8), keep_from=1) == 1
    learner = again(durable.copy())  # killed after it
    assert learner.trained.resting() == {1: bits_of({1, 2, 3}, 8)}
    must_append(log, first)
    assert [first.index, *issue(log, 1)] == order_of(1, 8, {1, 2, 3})
    learner.consume(5)
    assert learner.trained.complete_epochs == 2, "who rests counts as consumed"
    learner.commit([])


def test_broker_that_lost_what_held_gets_it_back_and_asks_the_rest_of_the_same_order(
    mortal: LocalBroker, log: RunLog, tmp_path: Path
) -> None:
    learner = start(log, num_prompts=8, num_epochs=2)
    issue(log, 0)
    learner.consume(8)
    learner.commit([])
    old = OldState(mortal, tmp_path / "old")
    every = order_of(1, 8, set())
    resting = {every[place] for place in (0, 2, 5)}
    log.rests.propose(learner.fence, epoch=1, bits=bits_of(resting, 8), keep_from=1)
    asked = [must_lease(log), must_lease(log)]
    for lease in asked:
        must_append(log, lease)
    learner.trained.rest(1, bits_of(resting, 8))
    learner.consume(2)
    old.bring_back()
    # Before the learner is back, the broker knows of nobody who rests.
    stray = must_lease(log)
    assert stray.index == every[0]
    assert reconcile(learner).was_rolled_back
    assert log.leases.append(stray, b"late", producer="gen-0").outcome == "lease_lost"
    assert [*(lease.index for lease in asked), *issue(log, 1)] == order_of(1, 8, resting)
    learner.consume(9)
    assert learner.trained.complete_epochs == 2
    learner.commit([])
    assert log.state.get() == "finished"
