from asympo.common.rollout_log import AppendOutcome, Lease, RunLog, RunState
from asympo.common.rollout_log.leases import MIN_APART_BYTES

from .conftest import let_expire, must_append, must_lease, start_run


def test_append_numbers_groups_densely_and_keeps_their_bytes(log: RunLog) -> None:
    start_run(log)
    payloads = [bytes([n]) * 10 + b"\r\n\x00|" for n in range(5)]
    leases = [must_lease(log, holder="a|b") for _ in payloads]
    for number, (lease, payload) in enumerate(zip(leases, payloads, strict=True), start=1):
        assert must_append(log, lease, payload).sequence == number
    entries = log.reader.read(after_sequence=0, max_count=10, block_seconds=0)
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.payload for entry in entries] == payloads
    assert [entry.group_id for entry in entries] == [lease.group_id for lease in leases]
    assert {entry.producer for entry in entries} == {"gen-0"}
    assert all(abs(entry.appended_at_seconds - log.stats.read().server_time_seconds) < 5 for entry in entries)


def test_append_retried_with_the_same_lease_writes_nothing_again(log: RunLog) -> None:
    learner = start_run(log)
    lease = must_lease(log)
    first = must_append(log, lease)
    again = log.leases.append(lease, b"payload", producer="gen-0")
    assert (again.outcome, again.sequence) == (AppendOutcome.DUPLICATE, first.sequence)
    learner.commit([entry.group_id for entry in learner.consume(1)])
    late = log.leases.append(lease, b"payload", producer="gen-0")
    assert (late.outcome, late.sequence) == (AppendOutcome.DUPLICATE, first.sequence)
    stats = log.stats.read()
    assert (stats.appended, stats.last_sequence, stats.wasted_appends) == (1, 1, 0)
    assert stats.duplicate_appends == 2


def test_append_after_expiry_is_refused_and_counted_as_wasted(log: RunLog) -> None:
    start_run(log)
    lease = must_lease(log)
    let_expire(log, lease)
    assert log.leases.append(lease, b"x", producer="gen-0").outcome == AppendOutcome.LEASE_LOST
    stats = log.stats.read()
    assert (stats.appended, stats.wasted_appends, stats.lease_expiries, stats.reissue) == (0, 1, 1, 1)


def test_append_of_a_late_holder_is_refused_after_its_prompt_was_reissued(log: RunLog) -> None:
    start_run(log)
    late = must_lease(log)
    let_expire(log, late)
    prompt = must_lease(log, holder="gen-1")
    assert prompt.group_id == late.group_id
    assert log.leases.append(late, b"late", producer="gen-0").outcome == AppendOutcome.LEASE_LOST
    must_append(log, prompt, b"in time")
    assert log.leases.append(late, b"late", producer="gen-0").outcome == AppendOutcome.LEASE_LOST
    assert [entry.payload for entry in log.reader.iter_entries()] == [b"in time"]


def test_append_of_an_invented_lease_is_refused(log: RunLog) -> None:
    start_run(log)
    invented = Lease(group_id="0-1", epoch=0, index=1, token="0" * 32, expires_in_seconds=9, policy_step=0)
    assert log.leases.append(invented, b"x", producer="gen-0").outcome == AppendOutcome.LEASE_LOST
    assert log.stats.read().last_sequence == 0


def test_append_reports_generation_staleness_in_policies_and_steps(log: RunLog) -> None:
    learner = start_run(log, publish_every=5)
    lease, fresh = must_lease(log), must_lease(log)
    must_append(log, fresh)
    for step in (5, 10, 15):
        log.policies.announce(learner.fence, step=step, digest=f"d{step}")
    result = must_append(log, lease)
    assert (result.generation_staleness, result.generation_staleness_steps) == (3, 15)
    stats = log.stats.read()
    assert stats.generation_staleness_policies_total == stats.generation_staleness_max == 3
    assert stats.generation_staleness_steps_total == 15


def test_append_too_stale_is_refused_and_its_prompt_issued_again(log: RunLog) -> None:
    learner = start_run(log, max_generation_staleness=1)
    lease = must_lease(log)
    for step in (1, 2):
        log.policies.announce(learner.fence, step=step, digest=f"d{step}")
    result = log.leases.append(lease, b"old", producer="gen-0")
    assert (result.outcome, result.generation_staleness) == (AppendOutcome.TOO_STALE, 2)
    assert must_lease(log, policy_step=2).group_id == lease.group_id
    stats = log.stats.read()
    assert (stats.appended, stats.stale_appends, stats.wasted_appends) == (0, 1, 1)


def test_append_is_taken_while_draining_and_refused_when_finished(log: RunLog) -> None:
    start_run(log)
    first, second = must_lease(log), must_lease(log)
    log.state.set(RunState.DRAINING)
    must_append(log, first)
    log.state.set(RunState.FINISHED)
    assert log.leases.append(second, b"x", producer="gen-0").outcome == AppendOutcome.REFUSED
    assert log.stats.read().leases == 0


LARGE = b"p" * MIN_APART_BYTES


def test_large_payload_lies_beside_the_log_and_goes_with_its_entry(log: RunLog) -> None:
    learner = start_run(log)
    lease = must_lease(log)
    must_append(log, lease, LARGE)
    [(_, fields)] = log.broker.read_range(log.access.key("log"), first_id="-", max_count=9)
    assert (fields["payload_at"], "payload" in fields) == (lease.token.encode(), False)
    again = log.leases.append(lease, b"q" * MIN_APART_BYTES, producer="gen-0")
    assert (again.outcome, again.sequence) == (AppendOutcome.DUPLICATE, 1)
    assert log.stats.read().bytes_used > MIN_APART_BYTES
    [entry] = learner.consume(1)
    assert (entry.payload, entry.problem) == (LARGE, "")
    learner.commit([entry.group_id])
    assert num_payloads(log) == 0


def test_payload_that_an_earlier_attempt_left_is_not_taken_for_another(log: RunLog) -> None:
    start_run(log)
    lease = must_lease(log)
    log.broker.command("HSETNX", log.access.key("payloads"), lease.token, b"left")
    must_append(log, lease, LARGE)
    assert [entry.payload for entry in log.reader.iter_entries()] == [LARGE]


def test_payloads_that_nothing_refers_to_go_with_a_commit(log: RunLog) -> None:
    learner = start_run(log)
    for lease in [must_lease(log) for _ in range(2)]:
        let_expire(log, lease)
        assert log.leases.append(lease, LARGE, producer="gen-0").outcome == AppendOutcome.LEASE_LOST
    must_append(log, payload=LARGE)
    must_append(log, payload=LARGE)
    held = must_lease(log)
    log.broker.command("HSETNX", log.access.key("payloads"), held.token, LARGE)
    assert num_payloads(log) == 5
    learner.commit([entry.group_id for entry in learner.consume(1)])
    assert num_payloads(log) == 2, "that of the entry to be read, and that of the lease"
    assert [entry.problem for entry in log.reader.iter_entries()] == [""]


def test_entry_whose_payload_is_gone_says_so(log: RunLog) -> None:
    start_run(log)
    must_append(log, payload=LARGE)
    log.broker.command("DEL", log.access.key("payloads"))
    assert [entry.problem for entry in log.reader.iter_entries()] == ["entry has no payload"]


def num_payloads(log: RunLog) -> int:
    count: int = log.broker.command("HLEN", log.access.key("payloads"))
    return count
