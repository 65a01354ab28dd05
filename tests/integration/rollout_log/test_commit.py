from collections.abc import Callable

import pytest
from asympo.common.errors import BrokerChanged
from asympo.common.rollout_log import Broker, CommitRecord, RunLog
from asympo.common.rollout_log.leases import MIN_APART_BYTES
from asympo.local.broker import LocalBroker

from .conftest import must_append, must_lease, start_run


def test_commit_moves_the_cursor_frees_and_trims(log: RunLog) -> None:
    learner = start_run(log)
    for _ in range(5):
        must_append(log)
    ids = [entry.group_id for entry in log.reader.read(after_sequence=0, max_count=3, block_seconds=0)]
    learner.sequence = 3
    learner.commit(ids)
    assert log.commits.last() == CommitRecord(sequence=3, state_name="step-1", step=1, fence=1)
    assert [entry.sequence for entry in log.reader.iter_entries()] == [4, 5]
    stats = log.stats.read()
    assert (stats.open, stats.trained, stats.committed_sequence, stats.backlog) == (2, 3, 3, 2)


def test_commit_never_holds_many_entries_at_once(
    start_server: Callable[..., LocalBroker], run_name: str
) -> None:
    """A restored run has its payloads in the entries."""
    log = RunLog(Broker.connect(start_server().url), run_name)
    learner = start_run(log, groups_per_step=24, max_groups_per_step=24)
    for _ in range(24):
        log.access.call("append", must_lease(log).token, b"p" * 2**20, "gen-0")
    must_append(log, payload=b"p" * MIN_APART_BYTES)
    before = log.broker.client.info("memory")["used_memory_peak"]
    learner.sequence = 25
    learner.commit([])
    assert log.broker.client.info("memory")["used_memory_peak"] - before < 8 * 2**20
    assert log.broker.client.exists(log.access.key("payloads")) == 0


def test_commit_never_trims_unread_entries_even_when_retried_late(log: RunLog) -> None:
    learner = start_run(log)
    for _ in range(4):
        must_append(log)
    log.commits.commit(learner.fence, sequence=3, state_name="s3", step=3, group_ids=[])
    log.commits.commit(learner.fence, sequence=1, state_name="s1", step=1, group_ids=[])
    assert [entry.sequence for entry in log.reader.iter_entries()] == [4]
    commit = log.commits.last()
    assert commit is not None
    assert commit.sequence == 3


def test_commit_twice_counts_once(log: RunLog) -> None:
    learner = start_run(log)
    must_append(log)
    ids = [entry.group_id for entry in learner.consume(1)]
    for _ in range(2):
        log.commits.commit(learner.fence, sequence=1, state_name="s", step=1, group_ids=ids)
    assert log.stats.read().trained == 1


def test_commit_beyond_the_log_asks_for_a_reconcile(log: RunLog) -> None:
    learner = start_run(log)
    must_append(log)
    with pytest.raises(BrokerChanged):
        log.commits.commit(learner.fence, sequence=2, state_name="s", step=1, group_ids=[])
    assert log.commits.last() is None


def test_commit_takes_more_ids_than_one_script_call_carries(log: RunLog) -> None:
    learner = start_run(log, groups_per_step=3000, max_groups_per_step=3000, num_prompts=9000)
    pipe = log.broker.client.pipeline()
    ids = [f"9-{number}" for number in range(5000)]
    pipe.sadd(log.access.key("open"), *ids)
    pipe.execute()
    learner.commit(ids)
    assert log.stats.read().open == 0


def test_free_is_idempotent_and_ignores_unknown_ids(log: RunLog) -> None:
    learner = start_run(log)
    first, second = must_lease(log), must_lease(log)
    must_append(log, first)
    must_append(log, second)
    assert log.commits.free(learner.fence, [first.group_id, "7-7"]) == 1
    assert log.commits.free(learner.fence, [first.group_id]) == 0
    assert log.stats.read().open == 1


def test_dead_letter_keeps_the_record_with_its_reason_and_frees_its_slot(log: RunLog) -> None:
    learner = start_run(log)
    must_append(log, payload=b"\xffrubbish")
    must_append(log)
    first, second = log.reader.read(after_sequence=0, max_count=2, block_seconds=0)
    for _ in range(2):
        log.dead_letters.add(learner.fence, first, "reward 0 is nan: give a finite number")
    assert log.stats.read().open == 1
    log.dead_letters.add(learner.fence, second, "too long")
    newest, oldest = log.dead_letters.newest(10)
    assert (newest.sequence, oldest.sequence) == (2, 1)
    assert oldest.payload == b"\xffrubbish"
    assert oldest.reason == "reward 0 is nan: give a finite number"
    assert (log.stats.read().dead_letters, log.stats.read().open, log.stats.read().last_sequence) == (2, 0, 2)
