"""A run's keys taken to another broker, of another kind: what is there then, and what goes on from it."""

from collections.abc import Callable, Iterator

import pytest
from asympo.common.errors import BadSetting
from asympo.common.rollout_log import AppendOutcome, Broker, RunLog
from asympo.common.rollout_log.keys import DELETED, NOUNS, key
from asympo.common.rollout_log.leases import MIN_APART_BYTES
from asympo.local.broker import LocalBroker

from .conftest import Learner, must_append, must_lease, start_run

CHANGED = {"learner", "leases", "deadlines", "reissue", "presence", "presence_until"}


@pytest.fixture
def elsewhere(broker_url: str, run_name: str) -> Iterator[RunLog]:
    """The same run's place on the other broker of these tests, which is a Redis wherever there is one."""
    broker = Broker.connect(broker_url)
    yield RunLog(broker, run_name)
    broker.close()


def content(log: RunLog) -> dict[str, object]:
    """What a copy says of every key, but for what a restore changes."""
    found: dict[str, list[object]] = {noun: [] for noun in NOUNS}
    for piece in log.copies.read():
        # Brokers list members and fields in an order of their own.
        is_ordered = piece.kind in ("list", "stream", "string")
        found[piece.noun].append(piece.items if is_ordered else sorted(piece.items))
    return {noun: items for noun, items in found.items() if noun not in CHANGED}


def test_run_goes_on_elsewhere_and_every_prompt_is_answered_once(log: RunLog, elsewhere: RunLog) -> None:
    learner = start_run(log, num_prompts=20, num_epochs=1)
    for number in range(6):
        must_append(log, payload=b"p" * (1 + number % 2 * MIN_APART_BYTES))
    entries = learner.consume(4)
    learner.commit([entry.group_id for entry in entries[:3]])
    log.dead_letters.add(learner.fence, entries[3], "bad")
    log.policies.mark_bad(step=9, fence=9, reason="r", holder="h")
    lease = must_lease(log)
    log.presence.report("gen-0", {}, ttl_seconds=5)
    for _ in range(2):
        elsewhere.state.delete()
        elsewhere.copies.put_back(log.copies.read())
    assert elsewhere.broker.command("EXISTS", key(log.run, DELETED)) == 0, "it is no deleted run any more"
    assert content(elsewhere) == content(log)
    kept = [[(e.payload, e.problem) for e in each.reader.iter_entries()] for each in (elsewhere, log)]
    assert kept[0] == kept[1] == [(b"p", ""), (b"p" * (MIN_APART_BYTES + 1), "")]
    assert elsewhere.presence.generators() == []
    stats = elsewhere.stats.read()
    assert (stats.leases, stats.reissue, stats.is_fence_alive) == (0, 1, False)
    # Its holder may still be there, and has lost it.
    assert elsewhere.leases.append(lease, b"late", producer="gen-0").outcome is AppendOutcome.LEASE_LOST
    fence = elsewhere.fence.take("learner-1")
    assert fence.number > learner.fence.number
    fence = elsewhere.reconciler.reconcile(fence, committed=log.commits.last(), trained=learner.trained).fence
    resumed = Learner(log=elsewhere, fence=fence, trained=learner.trained, sequence=learner.sequence)
    while not elsewhere.stats.read().is_exhausted:
        must_append(elsewhere, must_lease(elsewhere))
        resumed.consume(9, block_seconds=0)
    assert sorted(resumed.trained.copy().partial_epochs()) == []
    assert resumed.trained.num_in_epoch(0) == 20
    elsewhere.state.delete()


def test_copy_asks_for_few_entries_at_once(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may have 16 MiB, and the broker has to hold a whole answer."""
    start_run(log)
    for _ in range(5):
        must_append(log)
    answers, read = list[int](), log.broker.read_range

    def counted(key: str, *, first_id: str, max_count: int, last_id: str = "+") -> list[object]:
        entries = read(key, first_id=first_id, max_count=max_count, last_id=last_id)
        answers.append(len(entries))
        return entries

    monkeypatch.setattr(log.broker, "read_range", counted)
    assert len([piece for piece in log.copies.read() if piece.noun == "log"]) == sum(answers) == 5
    assert max(answers) <= 2


def test_run_that_is_there_is_not_written_over(log: RunLog) -> None:
    start_run(log)
    pieces = list(log.copies.read())
    with pytest.raises(BadSetting, match=r"has a run .* stop its services and delete it"):
        log.copies.put_back(pieces)
    assert list(log.copies.read()) == pieces


def test_copy_that_was_cut_off_is_no_run_and_may_be_tried_again(
    log: RunLog, start_server: Callable[..., LocalBroker]
) -> None:
    learner = start_run(log)
    must_append(log)
    learner.consume(1)
    broker = Broker.connect(start_server().url)
    other = RunLog(broker, log.run)
    pieces = list(log.copies.read())
    with pytest.raises(BadSetting, match="has no config"):
        other.copies.put_back(piece for piece in pieces if piece.noun != "config")
    assert broker.run_names() == []
    other.copies.put_back(pieces)
    assert content(other) == content(log)
    assert broker.command("LLEN", key(log.run, "reissue")) == 0
    broker.close()


def test_copy_of_a_run_that_is_not_there_is_refused(log: RunLog) -> None:
    with pytest.raises(BadSetting, match=f"has no run '{log.run}'"):
        list(log.copies.read())
