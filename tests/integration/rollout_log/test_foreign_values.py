"""Whatever is on the broker, its readers go on: each value that somebody else wrote, in every wrong form."""

import json
import random
from typing import Any

import pytest
from asympo.common.errors import BrokerRefused, BrokerUnavailable, SequenceGap
from asympo.common.rollout_log import AppendOutcome, Lease, Refused, RunLog, RunState
from asympo.common.rollout_log.dead_letters import MAX_DEAD_LETTER_BYTES
from asympo.common.rollout_log.keys import key
from asympo.common.rollout_log.reader import MAX_READ_BYTES

from .conftest import Learner, config_of, must_append, must_lease, start_run
from .test_scripts import APPEND_KEYS, SUBMIT_KEYS, appended, call, content

GARBAGE = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"[" * 100_000,
    b"9" * 5000,
    b'{"a": NaN}',
    b"\x00",
]


@pytest.fixture
def learner(log: RunLog) -> Learner:
    return start_run(log)


def put(log: RunLog, command: str, noun: str, *parts: Any) -> None:
    log.broker.command(command, key(log.run, noun), *parts)


@pytest.mark.parametrize(
    "fields",
    [
        [b"producer", b"\xff\xfe", b"group_id", b"0-1", b"at_ms", b"1", b"payload", b"p"],
        [b"group_id", b"0-1", b"at_ms", b"1", b"payload", b"p"],
        [b"group_id", b"0-1", b"producer", b"g", b"at_ms", b"soon", b"payload", b"p"],
        [b"group_id", b"0-1", b"producer", b"g", b"at_ms", b"9" * 5000, b"payload", b"p"],
        [b"group_id", b"\xff" * 4000, b"producer", b"g" * 9000, b"at_ms", b"1", b"payload", b"p"],
        [b"\xff", b"\xff"],
    ],
)
@pytest.mark.parametrize("entry_id", ["*", "1-1", "2-0", "18446744073709551615-0"])
def test_entry_added_by_hand_is_taken_out_and_the_log_goes_on(
    log: RunLog, learner: Learner, fields: list[bytes], entry_id: str
) -> None:
    first, waiting = must_lease(log), must_lease(log)
    must_append(log, first, b"a")
    put(log, "XADD", "log", entry_id, *fields)
    assert [entry.sequence for entry in log.reader.iter_entries()] == [1], "tools step over it"
    assert [entry.sequence for entry in learner.consume(5, block_seconds=0.0)] == [1]
    assert learner.consume(5, block_seconds=0.0) == []
    must_append(log, waiting, b"b")
    assert [entry.sequence for entry in learner.consume(5, block_seconds=0.0)] == [2]
    assert len(log.dead_letters.newest()) == 1


@pytest.mark.parametrize("entry_id", ["2-2", "18446744073709551615-7"])
@pytest.mark.timeout(60)
def test_start_copy_and_purge_pass_an_entry_added_by_hand_once(
    log: RunLog, learner: Learner, entry_id: str
) -> None:
    stray = ["group_id", "0-9", "producer", "g", "at_ms", "1", "payload", "p"]
    for sequence in (1, 2):
        must_append(log)
        put(log, "XADD", "log", f"{sequence}-1", *stray)
        log.reader.read(after_sequence=0, max_count=5, block_seconds=0.0, fence=learner.fence)
    letters = [piece.items[0] for piece in log.copies.read() if piece.noun == "dead"]
    assert len(letters) == len(set(letters)) == 2
    put(log, "XADD", "log", entry_id, *stray)
    report = log.reconciler.reconcile(learner.fence, committed=None, trained=learner.trained)
    assert (report.num_reissued, report.lost_sequences, log.stats.read().open) == (0, 0, 2)
    assert log.submissions.purge("g") == (0, 0)
    assert [entry.sequence for entry in learner.consume(5, block_seconds=0.0)] == [1, 2]


def test_entry_of_a_known_number_that_is_no_group_says_why(log: RunLog, learner: Learner) -> None:
    """As a script of another release might write it, or a broker restored from something else."""
    put(log, "XADD", "log", "1-0", "group_id", "0-1", "producer", b"\xff", "at_ms", "1", "payload", "p")
    put(log, "HSET", "run", "last_sequence", "1")
    (entry,) = log.reader.read(after_sequence=0, max_count=5, block_seconds=0.0, fence=learner.fence)
    assert "no text" in entry.problem
    log.dead_letters.add(learner.fence, entry, entry.problem)
    assert log.dead_letters.newest()[0].reason == entry.problem


def test_entry_that_was_deleted_is_a_gap(log: RunLog, learner: Learner) -> None:
    for _ in range(2):
        must_append(log, must_lease(log), b"a")
    put(log, "XDEL", "log", "1-0")
    with pytest.raises(SequenceGap):
        learner.consume(5, block_seconds=0.0)


@pytest.mark.parametrize("value", GARBAGE)
def test_reports_that_nobody_can_read_are_counted_and_set_aside(
    log: RunLog, learner: Learner, value: bytes
) -> None:
    log.presence.report("good", {"state": "serving", "of_a_later_release": [1]}, ttl_seconds=60)
    log.policies.mark_bad(step=3, fence=1, reason="r" * 5000, holder="h")
    put(log, "HSET", "presence", b"bad\xff", value)
    put(log, "ZADD", "presence_until", 10**15, b"bad\xff")
    for name in (b"1:4", b"x", b"9" * 5000 + b":1", b"\xff:\xff"):
        put(log, "HSET", "bad_policies", name, b"1:" + value)
    assert [each["holder"] for each in log.presence.generators()] == ["good"]
    assert [bad.step for bad in log.policies.bad()] == [3]
    assert log.access.unreadable["presence"] == 1
    assert log.access.unreadable["bad_policies"] >= 1


def test_report_of_a_later_release_is_read(log: RunLog, learner: Learner) -> None:
    put(
        log,
        "HSET",
        "bad_policies",
        "1:4",
        "5:" + json.dumps({"reason": "r", "holder": "h", "more": {"a": 1}}),
    )
    (bad,) = log.policies.bad()
    assert (bad.step, bad.reason, bad.at_seconds) == (4, "r", 0.005)


def test_values_too_large_are_refused_before_they_are_stored(log: RunLog, learner: Learner) -> None:
    lease = must_lease(log)
    keys = [key(log.run, "presence"), key(log.run, "presence_until")]
    with pytest.raises(BrokerRefused):
        log.broker.run_script("report_presence", keys, ["h", b"x" * 20_000_000, 1000])
    with pytest.raises(BrokerRefused):
        log.leases.acquire(holder="h" * 600, policy_step=0)
    for producer in ("p" * 600, "a\x1b[31m", "a\nb"):
        with pytest.raises(BrokerRefused):
            log.leases.append(lease, b"p", producer=producer)
    assert log.leases.append(lease, b"p", producer="größe").outcome is AppendOutcome.APPENDED


def test_record_over_the_runs_limit_is_refused_and_its_lease_goes_on(log: RunLog) -> None:
    config = config_of(log.run, sampling={"max_tokens": 16})
    learner = start_run(log, sampling={"max_tokens": 16})
    lease = must_lease(log)
    result = log.leases.append(lease, b"x" * (config.max_record_bytes + 1), producer="g")
    assert (result.outcome, result.sequence) == (AppendOutcome.TOO_LARGE, config.max_record_bytes)
    assert learner.consume(1, block_seconds=0.0) == []
    must_append(log, lease, b"x" * config.max_record_bytes)


@pytest.mark.parametrize("value", [b"", b"\xff", b"0-1", b"0-1|x|y|z", b"a-b|0|1|h", b"|||", b"9" * 9000])
def test_leases_that_do_not_parse_end(log: RunLog, learner: Learner, value: bytes) -> None:
    held = must_lease(log)
    put(log, "HSET", "leases", "forged", value)
    put(log, "ZADD", "deadlines", 1, "forged")
    put(log, "RPUSH", "reissue", value)
    put(log, "SADD", "open", value)
    assert must_lease(log).group_id != held.group_id
    put(log, "HSET", "leases", "forged", value)
    put(log, "ZADD", "deadlines", 10**15, "forged")
    forged = Lease(group_id="0-1", epoch=0, index=1, token="forged", expires_in_seconds=1.0, policy_step=0)
    log.leases.renew([forged])
    log.leases.hand_back(forged, reason="x", is_prompt_failure=True)
    assert log.leases.append(forged, b"p", producer="g").outcome is AppendOutcome.LEASE_LOST
    put(log, "HSET", "leases", "forged", value)
    log.reconciler.reconcile(learner.fence, committed=None, trained=learner.trained)
    must_append(log, held, b"p")
    assert len(learner.consume(5, block_seconds=0.0)) == 1


def test_leases_that_nobody_was_given_hold_no_slot(log: RunLog, learner: Learner) -> None:
    honest, config = must_lease(log), log.state.config()
    assert config is not None
    for number in range(config.capacity):
        token = f"forged-{number}"
        put(log, "HSET", "leases", token, "garbage")
        if number % 2:
            put(log, "ZADD", "deadlines", 10**15, token)
    second = must_lease(log)
    assert second.group_id != honest.group_id
    must_append(log, honest)
    must_append(log, second)
    assert log.broker.command("HLEN", key(log.run, "leases")) == 0


def test_state_of_a_later_release_counts_as_not_running(log: RunLog, learner: Learner) -> None:
    put(log, "HSET", "learner", "state", b"hibernating\xff")
    assert log.state.get() is RunState.CREATED
    assert log.stats.read().state is RunState.CREATED


def test_reading_and_dead_letters_are_bounded_by_bytes(log: RunLog, learner: Learner) -> None:
    payload = random.Random(0).randbytes(15 * 2**20)
    for _ in range(4):
        must_append(log, must_lease(log), payload)
    entries = log.reader.read(after_sequence=0, max_count=8, block_seconds=0.0, fence=learner.fence)
    assert sum(len(entry.payload) for entry in entries) <= MAX_READ_BYTES
    for entry in log.reader.iter_entries():
        log.dead_letters.add(learner.fence, entry, "too large to keep")
    kept = log.dead_letters.newest()
    assert [letter.sequence for letter in kept] == [4]
    assert sum(len(letter.payload) for letter in kept) <= MAX_DEAD_LETTER_BYTES
    assert log.stats.read().dead_letters == 4
    assert log.dead_letters.purge() == 1


@pytest.mark.parametrize("written", [b"nan", b"-1", b"0.5", b"1e300", b"x", b"", b"9" * 400])
@pytest.mark.parametrize("field", ["position", "epoch"])
def test_cursor_that_somebody_wrote_over_holds_nobody_up_for_longer_than_a_reconcile(
    log: RunLog, learner: Learner, field: str, written: bytes
) -> None:
    must_append(log)
    put(log, "HSET", "run", field, written)
    refused = log.leases.acquire(holder="gen-0", policy_step=0)
    assert isinstance(refused, Refused)
    learner.consume(1)
    log.reconciler.reconcile(learner.fence, committed=None, trained=learner.trained, trained_sequence=1)
    assert must_lease(log).group_id not in learner.trained


@pytest.mark.parametrize(
    "in_the_way",
    [
        ("XADD", "log", "2-1", "field", "value"),
        ("XADD", "log", "7-0", "field", "value"),
        ("XADD", "log", "18446744073709551615-18446744073709551615", "field", "value"),
        *(
            ("HSET", "run", "last_sequence", number)
            for number in ("", "0", "x", "-3", "nan", "1e300", "9" * 16)
        ),
    ],
    ids=str,
)
def test_scripts_that_enter_groups_are_asked_again_when_their_number_is_not_to_be_had(
    log: RunLog, learner: Learner, in_the_way: tuple[str, ...]
) -> None:
    lease, entry = must_lease(log), appended(log)
    learner.consume(1)
    log.dead_letters.add(learner.fence, log.reader.read_at([1])[0], "why")
    command, noun, *parts = in_the_way
    log.broker.command(command, key(log.run, noun), *parts)
    calls = (
        ("append", APPEND_KEYS, lease.token, b"p", "g"),
        ("submit", SUBMIT_KEYS, "agents", 2**53, 10, "agents/0000000000000001", "agents/1", b"payload"),
        ("retry", "run log open dead", "1-0", "retry/1.0", b"q", "g"),
    )
    before = content(log)
    for each in calls:
        with pytest.raises(BrokerUnavailable, match="STRAY"):
            call(log, *each)
    assert content(log) == before, "nothing is written by halves"
    learner.heal()
    for each in calls:
        assert b"APPENDED" in (reply := call(log, *each)) or reply[0] == b"OK"
    assert [each.group_id for each in learner.consume(3)] == [lease.group_id, "agents/1", "retry/1.0"]
    assert entry.group_id in learner.trained
