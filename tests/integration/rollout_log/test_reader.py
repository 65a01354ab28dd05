import threading
import time

import pytest
from asympo.common.errors import Fenced, SequenceGap
from asympo.common.rollout_log import RunLog

from .conftest import must_append, must_lease, start_run


def test_read_returns_what_lies_after_the_cursor_in_order(log: RunLog) -> None:
    start_run(log)
    for _ in range(6):
        must_append(log)
    sequences = [e.sequence for e in log.reader.read(after_sequence=2, max_count=3, block_seconds=0)]
    assert sequences == [3, 4, 5]
    assert log.reader.read(after_sequence=6, max_count=3, block_seconds=0) == []


def test_read_blocks_until_a_group_comes(log: RunLog) -> None:
    start_run(log)
    timer = threading.Timer(0.2, lambda: must_append(log))
    timer.start()
    began = time.monotonic()
    assert len(log.reader.read(after_sequence=0, max_count=3, block_seconds=60)) == 1
    assert 0.1 < time.monotonic() - began < 30
    timer.join()


def test_read_returns_empty_after_its_time_out(log: RunLog) -> None:
    start_run(log)
    began = time.monotonic()
    assert log.reader.read(after_sequence=0, max_count=3, block_seconds=0.2) == []
    assert time.monotonic() - began > 0.15


@pytest.mark.parametrize("gone", ["2-0", "1-0"])
def test_read_treats_a_missing_entry_as_an_error(log: RunLog, gone: str) -> None:
    start_run(log)
    for _ in range(3):
        must_append(log)
    log.broker.client.xdel(log.access.key("log"), gone)
    with pytest.raises(SequenceGap, match="1 missing"):
        log.reader.read(after_sequence=0, max_count=10, block_seconds=0)


def test_read_refuses_a_learner_that_lost_its_fence(log: RunLog) -> None:
    learner = start_run(log)
    must_append(log)
    log.fence.take("learner-1", take_over=True)
    with pytest.raises(Fenced):
        learner.consume(1)


def test_followers_read_at_their_own_pace_and_hold_nothing_back(log: RunLog) -> None:
    learner = start_run(log)
    for _ in range(4):
        must_append(log)
    learner.commit([entry.group_id for entry in learner.consume(2)])
    assert [entry.sequence for entry in log.reader.iter_entries()] == [3, 4]
    tail = log.reader.tail(after_sequence=3, block_seconds=0.05)
    entry = next(tail)
    assert entry is not None
    assert entry.sequence == 4
    assert next(tail) is None


def test_log_whose_last_entries_were_taken_out_is_at_its_end(log: RunLog) -> None:
    start_run(log)
    for producer in ("gen-0", "agents", "agents"):
        log.leases.append(must_lease(log), b"payload", producer=producer)
    assert [log.reader.is_at_end(sequence) for sequence in range(4)] == [False, False, False, True]
    assert log.submissions.purge("agents") == (2, 0)
    assert [log.reader.is_at_end(sequence) for sequence in range(4)] == [False, True, True, True]
