"""A broker that restarts, or comes back with an older state, as after a fail-over or a restored volume."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from asympo.common.errors import BrokerChanged, Fenced, RunHasLearner, SequenceGap
from asympo.common.rollout_log import Broker, CommitRecord, Lease, ReconcileReport, RunLog, RunState
from asympo.common.trained_ids import TrainedIds
from asympo.local.broker import LocalBroker

from .conftest import Learner, config_of, let_heartbeat_expire, lose, must_append, must_lease, start_run


class OldState:
    """A copy of a broker's files that it can be restarted on."""

    def __init__(self, server: LocalBroker, copy_dir: Path) -> None:
        self.server, self.copy_dir = server, copy_dir
        shutil.copytree(server.directory, copy_dir)

    def bring_back(self) -> None:
        self.server.kill()
        shutil.rmtree(self.server.directory)
        shutil.copytree(self.copy_dir, self.server.directory)
        self.server.start()


@pytest.fixture
def mortal(start_server: Callable[..., LocalBroker]) -> LocalBroker:
    return start_server()


@pytest.fixture
def log(mortal: LocalBroker, run_name: str) -> RunLog:
    return RunLog(Broker.connect(mortal.url), run_name)


def reconcile(learner: Learner) -> ReconcileReport:
    """What a learner does in mid-run when it hears BrokerChanged."""
    report = learner.log.reconciler.reconcile(
        learner.fence,
        committed=learner.log.commits.last(),
        trained=learner.trained,
        trained_sequence=learner.sequence,
    )
    learner.fence = report.fence
    return report


def finish(learner: Learner, lost: tuple[Lease, ...] = ()) -> None:
    """Answers and consumes every prompt that is left; asserts that each was consumed exactly once."""
    log, deadline = learner.log, time.monotonic() + 20
    while not log.stats.read().is_exhausted or log.stats.read().open:
        assert time.monotonic() < deadline, log.stats.read()
        lease = log.leases.acquire(holder="gen-1", policy_step=0)
        if isinstance(lease, Lease):
            must_append(log, lease)
        learner.consume(10, block_seconds=0.01)
    assert learner.trained.complete_epochs == 1


def test_restart_without_loss_asks_for_a_reconcile_and_changes_nothing(
    mortal: LocalBroker, log: RunLog
) -> None:
    learner = start_run(log, num_prompts=8, num_epochs=1)
    must_append(log)
    learner.consume(1)
    held = must_lease(log)
    mortal.kill()
    mortal.start()
    with pytest.raises(BrokerChanged):
        learner.consume(1)
    let_heartbeat_expire(log)
    with pytest.raises(BrokerChanged):
        log.fence.heartbeat(learner.fence)
    with pytest.raises(RunHasLearner):
        log.fence.take("learner-1")
    report = reconcile(learner)
    assert not report.was_rolled_back
    assert (report.num_freed, report.num_reopened, report.num_reissued, report.lost_sequences) == (0, 0, 0, 0)
    must_append(log, held)
    finish(learner)


def test_start_puts_uncommitted_groups_back_into_open(log: RunLog) -> None:
    learner = start_run(log)
    for _ in range(5):
        must_append(log)
    ids = [entry.group_id for entry in learner.consume(2)]
    learner.commit(ids)
    state, committed = learner.trained.copy(), log.commits.last()
    learner.consume(2)
    assert log.stats.read().open == 1
    fence = log.fence.take("learner-1", take_over=True)
    report = log.reconciler.reconcile(fence, committed=committed, trained=state)
    assert (report.num_reopened, log.stats.read().open) == (2, 3)
    entries = log.reader.read(after_sequence=2, max_count=9, block_seconds=0, fence=report.fence)
    assert [entry.sequence for entry in entries] == [3, 4, 5]


def test_start_issues_again_what_is_purged_while_it_reconciles(
    log: RunLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = start_run(log, num_prompts=8, num_epochs=1)
    for _ in range(3):
        must_append(log)
    learner.consume(2)
    fence = log.fence.take("learner-1", take_over=True)
    purged, call = list[tuple[int, int]](), log.access.call

    def purging(script: str, *arguments: object) -> list[object]:
        if script == "settle" and not purged:
            purged.append(log.submissions.purge("gen-0"))
        return call(script, *arguments)

    monkeypatch.setattr(log.access, "call", purging)
    state = TrainedIds(num_prompts=8)
    report = log.reconciler.reconcile(fence, committed=None, trained=state)
    assert purged == [(3, 0)]
    assert (log.stats.read().open, log.stats.read().reissue) == (0, 3)
    finish(Learner(log=log, fence=report.fence, trained=state))


def test_start_frees_what_the_training_state_covers(log: RunLog) -> None:
    """The learner died between saving its state and committing it."""
    learner = start_run(log)
    for _ in range(3):
        must_append(log)
    entries = log.reader.read(after_sequence=0, max_count=2, block_seconds=0)
    for entry in entries:
        learner.trained.add(entry.group_id)
    fence = log.fence.take("learner-1", take_over=True)
    committed = CommitRecord(sequence=2, state_name="step-1", step=1, fence=1)
    report = log.reconciler.reconcile(fence, committed=committed, trained=learner.trained)
    assert (report.num_freed, log.stats.read().open, report.commit) == (2, 1, committed)
    assert log.commits.last() == committed


def test_rollback_never_reuses_a_number_and_reissues_what_was_lost(
    mortal: LocalBroker, log: RunLog, tmp_path: Path
) -> None:
    learner = start_run(log, num_prompts=12, num_epochs=1, groups_per_step=20, max_groups_per_step=20)
    must_append(log)
    learner.consume(1)
    known_to_old_state = must_lease(log)
    old = OldState(mortal, tmp_path / "old")
    must_append(log, known_to_old_state)
    for _ in range(4):
        must_append(log)
    learner.consume(3)
    old.bring_back()
    with pytest.raises(BrokerChanged):
        learner.consume(1)
    report = reconcile(learner)
    assert report.was_rolled_back
    assert (report.last_sequence, report.lost_sequences) == (4, 3)
    assert report.num_freed == 1, "the lease of a group that was trained is taken back"
    assert must_append(log).sequence == 5
    finish(learner)


def test_rollback_behind_a_commit_restores_commit_and_cursor(
    mortal: LocalBroker, log: RunLog, tmp_path: Path
) -> None:
    learner = start_run(log, num_prompts=10, num_epochs=1, groups_per_step=20, max_groups_per_step=20)
    must_append(log)
    old = OldState(mortal, tmp_path / "old")
    for _ in range(5):
        must_append(log)
    learner.commit([entry.group_id for entry in learner.consume(4)])
    committed, state = log.commits.last(), learner.trained.copy()
    old.bring_back()
    fence = log.fence.take("learner-1", take_over=True, at_least=1)
    report = log.reconciler.reconcile(fence, committed=committed, trained=state)
    assert (report.commit, log.commits.last()) == (committed, committed)
    assert report.last_sequence == 4
    stats = log.stats.read()
    assert (stats.committed_sequence, stats.position, stats.open) == (4, 4, 0)
    finish(Learner(log=log, fence=report.fence, trained=state, sequence=4))


def test_groups_appended_under_used_numbers_before_the_reconcile_are_issued_again(
    mortal: LocalBroker, log: RunLog, tmp_path: Path
) -> None:
    learner = start_run(log, num_prompts=10, num_epochs=1, groups_per_step=20, max_groups_per_step=20)
    old = OldState(mortal, tmp_path / "old")
    for _ in range(3):
        must_append(log)
    trained = [entry.group_id for entry in learner.consume(3)]
    old.bring_back()
    eager = RunLog(Broker.connect(mortal.url), log.run)
    # A generator works on: the first three prompts again, then a new one, under numbers 1 to 4.
    again = [must_append(eager).sequence for _ in range(4)]
    assert again == [1, 2, 3, 4]
    report = reconcile(learner)
    assert report.was_rolled_back is False
    entries = learner.consume(9)
    assert [entry.sequence for entry in entries] == [4]
    assert entries[0].group_id not in trained
    finish(learner)


def test_forked_groups_that_were_not_trained_are_issued_again(
    mortal: LocalBroker, log: RunLog, tmp_path: Path
) -> None:
    learner = start_run(log, num_prompts=6, num_epochs=1, groups_per_step=20, max_groups_per_step=20)
    held = [must_lease(log) for _ in range(4)]
    old = OldState(mortal, tmp_path / "old")
    for lease in held[:2]:
        must_append(log, lease)
    learner.consume(2)
    old.bring_back()
    other = RunLog(Broker.connect(mortal.url), log.run)
    for lease in held[2:]:
        must_append(other, lease)
    report = reconcile(learner)
    assert report.was_rolled_back
    assert (report.num_reissued, report.num_freed) == (2, 2)
    finish(learner)


def test_learner_that_dies_after_a_rollback_steps_over_what_was_lost(
    mortal: LocalBroker, log: RunLog, tmp_path: Path
) -> None:
    learner = start_run(log, num_prompts=10, num_epochs=1, groups_per_step=20, max_groups_per_step=20)
    for _ in range(2):
        must_append(log)
    learner.commit([entry.group_id for entry in learner.consume(1)])
    committed, state = log.commits.last(), learner.trained.copy()
    old = OldState(mortal, tmp_path / "old")
    for _ in range(3):
        must_append(log)
    learner.consume(4)
    old.bring_back()
    reconcile(learner)
    must_append(log)
    # It dies here, with entries 3 to 5 trained only in its memory and gone from the broker.
    fence = log.fence.take("learner-1", take_over=True)
    report = log.reconciler.reconcile(fence, committed=committed, trained=state)
    assert report.num_reissued == 3
    successor = Learner(log=log, fence=report.fence, trained=state, sequence=1)
    assert [entry.sequence for entry in successor.consume(9)] == [2, 6]
    finish(successor)


def test_rollback_of_the_fence_itself_is_repaired_and_the_zombie_stays_out(
    mortal: LocalBroker, log: RunLog, tmp_path: Path
) -> None:
    zombie = start_run(log)
    old = OldState(mortal, tmp_path / "old")
    fence = log.fence.take("learner-1", take_over=True)
    old.bring_back()
    with pytest.raises(BrokerChanged):
        log.fence.heartbeat(fence)
    report = log.reconciler.reconcile(fence, committed=None, trained=TrainedIds(num_prompts=50))
    assert report.was_rolled_back
    log.fence.heartbeat(report.fence)
    with pytest.raises(Fenced):
        log.fence.heartbeat(zombie.fence)


def test_reconcile_twice_changes_nothing_more(mortal: LocalBroker, log: RunLog, tmp_path: Path) -> None:
    learner = start_run(log, num_prompts=10, num_epochs=1, groups_per_step=20, max_groups_per_step=20)
    old = OldState(mortal, tmp_path / "old")
    for _ in range(3):
        must_append(log)
    learner.consume(2)
    old.bring_back()
    reconcile(learner)
    before = log.stats.read()
    second = reconcile(learner)
    assert (second.num_freed, second.num_reopened, second.num_reissued) == (0, 0, 0)
    after = log.stats.read()
    assert (before.position, before.open, before.reissue) == (after.position, after.open, after.reissue)
    finish(learner)


def test_run_that_the_broker_has_lost_is_created_again_and_goes_on(
    start_server: Callable[..., LocalBroker], run_name: str
) -> None:
    server = start_server("--appendonly", "no", "--save", "")
    log = RunLog(Broker.connect(server.url), run_name)
    learner = start_run(log, num_prompts=8, num_epochs=1)
    learner.fence = log.fence.take("learner-0", take_over=True, total_steps=5)
    learner.fence = log.reconciler.reconcile(
        learner.fence, committed=None, trained=TrainedIds(num_prompts=8)
    ).fence
    config = log.state.config()
    for _ in range(2):
        must_append(log)
    learner.commit([entry.group_id for entry in learner.consume(2)])
    committed, lost = log.commits.last(), must_lease(log)
    server.kill()
    server.start()
    assert log.leases.append(lost, b"late", producer="gen-0").outcome == "lease_lost"
    with pytest.raises(BrokerChanged):
        learner.consume(1)
    report = log.reconciler.reconcile(
        learner.fence, committed=committed, trained=learner.trained, trained_sequence=2
    )
    learner.fence = report.fence
    assert (report.was_rolled_back, report.last_sequence, log.commits.last()) == (True, 2, committed)
    assert (log.state.config(), log.state.total_steps()) == (config, 5)
    log.policies.announce(learner.fence, step=0, digest="d0")
    log.state.set(RunState.RUNNING, fence=learner.fence)
    finish(learner)


@pytest.mark.parametrize("is_start", [False, True])
def test_run_whose_limits_were_evicted_gets_them_again(log: RunLog, is_start: bool) -> None:
    """As under a `maxmemory-policy` that evicts; nobody has deleted the run."""
    learner = start_run(log, num_prompts=8, num_epochs=1)
    must_append(log)
    answered, refused, kept = (must_lease(log) for _ in range(3))
    log.broker.command("DEL", log.access.key("learner"))
    # Who is at work waits: its leases hold, and what nobody can judge now is asked for again.
    assert log.leases.renew([answered, refused, kept]) == []
    assert log.leases.append(answered, b"payload", producer="gen-0").outcome == "lease_lost"
    assert log.leases.hand_back(refused, reason="too long", is_prompt_failure=True)
    if is_start:
        learner.fence = log.fence.take("learner-1", at_least=1)
        assert learner.fence.run_id == ""
    reconcile(learner)
    assert learner.fence.run_id == log.state.run_id() != ""
    must_append(log, kept)
    log.policies.announce(learner.fence, step=0, digest="d0")
    log.state.set(RunState.RUNNING, fence=learner.fence)
    finish(learner)


@pytest.mark.parametrize("is_fence_kept", [False, True])
def test_limits_that_are_lost_twice_are_missed_the_second_time_as_well(
    log: RunLog, is_fence_kept: bool
) -> None:
    learner = start_run(log, num_prompts=8, num_epochs=1)
    must_append(log)
    must_append(log)
    learner.commit([entry.group_id for entry in learner.consume(1)])
    log.broker.command("DEL", log.access.key("learner"))
    learner.fence = log.fence.take("learner-1", at_least=1)
    reconcile(learner)
    assert (log.stats.read().committed_sequence, log.stats.read().backlog) == (1, 1)
    learner.consume(1)
    if is_fence_kept:
        log.broker.command("HDEL", log.access.key("learner"), "committed_sequence")
    else:
        log.broker.command("DEL", log.access.key("learner"))
        with pytest.raises(BrokerChanged):
            log.fence.heartbeat(learner.fence)
    with pytest.raises(BrokerChanged):
        learner.commit([])
    reconcile(learner)
    assert log.stats.read().committed_sequence == 1
    learner.commit([])
    log.policies.announce(learner.fence, step=0, digest="d0")
    log.state.set(RunState.RUNNING, fence=learner.fence)
    finish(learner)


def test_run_that_the_broker_lost_before_its_learner_took_it_is_created_again(log: RunLog) -> None:
    """As when a broker without persistence restarts while the learner loads its model."""
    config = log.state.create_or_join(config_of(log.run))
    run_id = log.state.run_id()
    lose(log)
    fence = log.fence.take("learner-0")
    log.reconciler.reconcile(fence, committed=None, trained=TrainedIds(num_prompts=50))
    assert (log.state.config(), log.state.run_id()) == (config, run_id), "generators have joined it"


def test_reconcile_refuses_a_state_older_than_what_was_trimmed(log: RunLog) -> None:
    learner = start_run(log)
    for _ in range(3):
        must_append(log)
    learner.commit([entry.group_id for entry in learner.consume(2)])
    fence = log.fence.take("learner-1", take_over=True)
    with pytest.raises(SequenceGap, match=r"'step-1'.*covers only 0"):
        log.reconciler.reconcile(fence, committed=None, trained=TrainedIds(num_prompts=50))
