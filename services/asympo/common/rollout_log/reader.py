"""Reading the log in order from a cursor of one's own."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence

from asympo.common.codec import MAX_GROUP_ID_CHARS
from asympo.common.errors import SequenceGap
from asympo.common.foreign.numbers import parse_whole
from asympo.common.foreign.text import printable
from asympo.common.names import MAX_HOLDER_CHARS
from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.dead_letters import MAX_DEAD_LETTER_BYTES, MAX_DEAD_LETTERS
from asympo.common.rollout_log.types import Fence, LogEntry

log = logging.getLogger(__name__)

MAX_READ_BYTES = 32 * 2**20
"""Of the entries that one call brings; a single one may be larger."""
MAX_ENTRY_BYTES = 17 * 2**20
"""Of one entry: the largest record, and what is beside it. A larger payload stays on the broker."""
_PAYLOAD, _APART = b"payload", b"payload_at"
_FIELDS = (b"group_id", b"producer", b"at_ms", _PAYLOAD)
_LAST_PART = 2**64 - 1
"""Of an entry's id: whatever somebody adds under the number of an entry lies before it."""


class Reader:
    """Cursor readers. Reading moves nothing and deletes nothing."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def read(
        self, *, after_sequence: int, max_count: int, block_seconds: float, fence: Fence | None = None
    ) -> list[LogEntry]:
        """Entries after `after_sequence` in order, without gaps; empty when none came in `block_seconds`.

        At most `max_count` of them, with MAX_READ_BYTES together. The learner passes its `fence`: then
        Fenced and BrokerChanged are raised before anything is returned that belongs to another learner or to
        a broker that went back in time, and entries that no append wrote are taken out of the log. Raises
        SequenceGap when an entry is missing that no reconcile has declared lost.
        """
        deadline = time.monotonic() + block_seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            entries, strays = self._batch(after_sequence, max_count=max_count, fence=fence)
            if fence is not None and strays:
                self._expel(fence, strays)
                continue
            if entries or left == 0.0:
                self._check_dense(after_sequence, entries)
                return entries
            self._wait(after_sequence, left)

    def read_at(self, sequences: Sequence[int]) -> list[LogEntry]:
        """The entries with these ascending numbers, which the caller knows to exist.

        Raises SequenceGap when one is missing: trimmed, or lost by a broker that went back in time.
        """
        entries: dict[int, LogEntry] = {}
        for first, last in _runs(sequences):
            after = first - 1
            while after < last:
                batch, _ = self._batch(after, max_count=last - after)
                if not batch:
                    break
                entries |= {entry.sequence: entry for entry in batch}
                after = batch[-1].sequence
        for sequence in sequences:
            if sequence not in entries:
                raise SequenceGap(f"run {self._run.name!r}: entry {sequence} is no longer in the log")
        return [entries[sequence] for sequence in sequences]

    def is_at_end(self, after_sequence: int) -> bool:
        """Whether no entry follows: what was given out since then, if anything, are numbers that are lost."""
        last = number(self._run.broker.command("HGET", self._run.key("run"), "last_sequence"))
        holes = self._holes() if after_sequence < last else {}
        while after_sequence < last:
            if not (end := _end_of_hole(after_sequence + 1, holes)):
                return False
            after_sequence = end
        return True

    def iter_entries(self, *, after_sequence: int = 0, batch: int = 100) -> Iterator[LogEntry]:
        """Every entry that is in the log now after `after_sequence`; starts at the oldest one kept."""
        while True:
            entries, _ = self._batch(after_sequence, max_count=batch)
            if not entries:
                return
            after_sequence = entries[-1].sequence
            yield from entries

    def tail(
        self, *, after_sequence: int | None = None, block_seconds: float = 1.0
    ) -> Iterator[LogEntry | None]:
        """Entries as they come, by default from now on; None after each silent wait."""
        if after_sequence is None:
            after_sequence = number(self._run.broker.command("HGET", self._run.key("run"), "last_sequence"))
        while True:
            entries, _ = self._batch(after_sequence, max_count=100)
            if not entries:
                self._wait(after_sequence, block_seconds)
                entries, _ = self._batch(after_sequence, max_count=100)
            if not entries:
                yield None
            for entry in entries:
                after_sequence = entry.sequence
                yield entry

    def _batch(
        self, after_sequence: int, *, max_count: int, fence: Fence | None = None
    ) -> tuple[list[LogEntry], list[str]]:
        """Entries after a number, and ids of those that no append wrote."""
        asked = (after_sequence, max_count, MAX_READ_BYTES, MAX_ENTRY_BYTES)
        for is_last in (False, True):
            # One script looks at the fence and reads, so that no entry of a broker that changed is returned.
            reply = (
                self._run.call_fenced(fence, "read_fenced", *asked)
                if fence
                else self._run.call("read", *asked)
            )
            last_sequence = number(reply[0])
            found, strays = list[tuple[int, int, dict[bytes, bytes]]](), list[str]()
            for entry_id, size, flat in zip(reply[1::3], reply[2::3], reply[3::3], strict=True):
                digits, _, part = text(entry_id).partition("-")
                sequence = parse_whole(digits)
                if part != "0" or sequence is None or sequence > last_sequence:
                    strays.append(text(entry_id))
                else:
                    found.append((sequence, number(size), dict(zip(flat[::2], flat[1::2], strict=False))))
            # A commit between the two calls deletes entries with their payloads: then those are gone as well.
            whole = [fields for _, size, fields in found if size <= MAX_ENTRY_BYTES]
            if self._fetch_payloads(whole) or is_last:
                break
        return [_entry(*each) for each in found], strays

    def _fetch_payloads(self, entries: Sequence[dict[bytes, bytes]]) -> bool:
        """Puts payloads that lie beside the log into the entries; False when one was not there."""
        apart = [fields for fields in entries if _APART in fields and _PAYLOAD not in fields]
        if not apart:
            return True
        tokens = [fields[_APART] for fields in apart]
        payloads = self._run.broker.command("HMGET", self._run.key("payloads"), *tokens)
        for fields, payload in zip(apart, payloads, strict=True):
            if payload is not None:
                fields[_PAYLOAD] = payload
        return None not in payloads

    def _expel(self, fence: Fence, strays: Sequence[str]) -> None:
        reason = "no append wrote this entry: somebody added it to the stream by hand"
        log.warning("%d entries are taken out of the log of run %s: %s", len(strays), self._run.name, reason)
        self._run.unreadable["log"] += len(strays)
        self._run.call_fenced(fence, "expel", MAX_DEAD_LETTERS, MAX_DEAD_LETTER_BYTES, reason, *strays)

    def _wait(self, after_sequence: int, seconds: float) -> None:
        """Blocks until an entry comes; what it holds is read by the script that measures it."""
        after_id = f"{after_sequence}-{_LAST_PART}"
        self._run.broker.wait_for_entry({self._run.key("log"): after_id}, block_seconds=seconds)

    def _check_dense(self, after_sequence: int, entries: list[LogEntry]) -> None:
        expected = after_sequence + 1
        holes: dict[int, int] | None = None
        for entry in entries:
            while expected != entry.sequence:
                if holes is None:
                    holes = self._holes()
                end = _end_of_hole(expected, holes)
                if not end or end >= entry.sequence:
                    raise SequenceGap(
                        f"run {self._run.name!r}: the log goes from entry {expected - 1} to "
                        f"{entry.sequence}, {entry.sequence - expected} missing: they were deleted or lost; "
                        "resume from a training state that covers them, or start a new run"
                    )
                expected = end + 1
            expected = entry.sequence + 1

    def _holes(self) -> dict[int, int]:
        """First and last number of every range that a reconcile declared lost, or that was purged."""
        return {
            number(first): number(last) for first, last in self._run.broker.hash_items(self._run.key("holes"))
        }


def _end_of_hole(sequence: int, holes: Mapping[int, int]) -> int:
    """The last number of the range of lost ones that this one is in; 0 where it is in none."""
    return max((last for first, last in holes.items() if first <= sequence <= last), default=0)


def _runs(sequences: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring numbers as first and last."""
    first = last = None
    for sequence in sequences:
        if first is not None and last is not None and sequence != last + 1:
            yield first, last
            first = None
        first, last = (sequence if first is None else first), sequence
    if first is not None and last is not None:
        yield first, last


def _entry(sequence: int, size: int, fields: Mapping[bytes, bytes]) -> LogEntry:
    """One stream entry as a LogEntry; one that is no group says why."""
    missing = [name for name in _FIELDS if name not in fields]
    at_ms = parse_whole(fields.get(b"at_ms"))
    group_id, producer = text(fields.get(b"group_id")), text(fields.get(b"producer"))
    problem = ""
    if size > MAX_ENTRY_BYTES:
        problem = f"entry has {size} bytes, more than {MAX_ENTRY_BYTES}"
    elif missing:
        problem = f"entry has no {missing[0].decode()}"
    elif at_ms is None:
        problem = "entry does not say when it was appended"
    elif "\ufffd" in group_id + producer or len(group_id) > MAX_GROUP_ID_CHARS:
        problem = "entry's group id or producer is no text of the size that one has"
    return LogEntry(
        sequence=sequence,
        group_id=group_id[:MAX_GROUP_ID_CHARS],
        producer=printable(producer, max_chars=MAX_HOLDER_CHARS),
        payload=fields.get(_PAYLOAD, b""),
        entry_id=f"{sequence}-0",
        appended_at_seconds=(at_ms or 0) / 1000,
        problem=problem,
    )
