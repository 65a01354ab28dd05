"""Reading the log in order from a cursor of one's own."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from asympo.common.errors import SequenceGap
from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.types import Fence, LogEntry


class Reader:
    """Cursor readers. Reading moves nothing and deletes nothing."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def read(
        self, *, after_sequence: int, max_count: int, block_seconds: float, fence: Fence | None = None
    ) -> list[LogEntry]:
        """Entries after ``after_sequence`` in order, without gaps; empty when none came in ``block_seconds``.

        The learner passes its ``fence``: then Fenced and BrokerChanged are raised before anything is returned
        that belongs to another learner or to a broker that went back in time. Raises SequenceGap when an
        entry is missing that no reconcile has declared lost.
        """
        deadline = time.monotonic() + block_seconds
        raw: list[Any] = []
        while not raw:
            left = max(0.0, deadline - time.monotonic())
            raw = self._run.broker.blocking_read(
                self._run.key("log"), after_id=f"{after_sequence}-0", max_count=max_count, block_seconds=left
            )
            if fence is not None:
                # After the read, so that entries of a broker that changed meanwhile are not returned.
                self._run.call_fenced(fence, "check_fence")
            if left == 0.0:
                break
        entries = [_entry(*item) for item in raw]
        self._check_dense(after_sequence, entries)
        return entries

    def read_at(self, sequences: Sequence[int]) -> list[LogEntry]:
        """The entries of these ascending numbers, for whoever was told that they are there.

        Raises SequenceGap when one is missing: trimmed, or lost by a broker that went back in time.
        """
        entries: list[LogEntry] = []
        for first, last in _runs(sequences):
            raw = self._run.broker.read_range(
                self._run.key("log"), first_id=f"{first}-0", last_id=f"{last}-0", max_count=last - first + 1
            )
            entries.extend(_entry(*item) for item in raw)
        missing = set(sequences) - {entry.sequence for entry in entries}
        if missing:
            raise SequenceGap(f"run {self._run.name!r}: entry {min(missing)} is no longer in the log")
        return entries

    def iter_entries(self, *, after_sequence: int = 0, batch: int = 100) -> Iterator[LogEntry]:
        """Every entry that is in the log now after ``after_sequence``; starts at the oldest one kept."""
        while True:
            raw = self._run.broker.read_range(
                self._run.key("log"), first_id=f"({after_sequence}-0", max_count=batch
            )
            if not raw:
                return
            for item in raw:
                entry = _entry(*item)
                after_sequence = entry.sequence
                yield entry

    def tail(
        self, *, after_sequence: int | None = None, block_seconds: float = 1.0
    ) -> Iterator[LogEntry | None]:
        """Entries as they come, by default from now on; None after each silent wait."""
        if after_sequence is None:
            after_sequence = number(self._run.broker.command("HGET", self._run.key("run"), "last_sequence"))
        while True:
            raw = self._run.broker.blocking_read(
                self._run.key("log"),
                after_id=f"{after_sequence}-0",
                max_count=100,
                block_seconds=block_seconds,
            )
            if not raw:
                yield None
            for item in raw:
                entry = _entry(*item)
                after_sequence = entry.sequence
                yield entry

    def _check_dense(self, after_sequence: int, entries: list[LogEntry]) -> None:
        expected = after_sequence + 1
        holes: dict[int, int] | None = None
        for entry in entries:
            while expected != entry.sequence:
                if holes is None:
                    holes = self._holes()
                end = max((last for first, last in holes.items() if first <= expected <= last), default=0)
                if not end or end >= entry.sequence:
                    raise SequenceGap(
                        f"run {self._run.name!r}: the log goes from entry {expected - 1} to "
                        f"{entry.sequence}, {entry.sequence - expected} missing: they were deleted or lost; "
                        "resume from a training state that covers them, or start a new run"
                    )
                expected = end + 1
            expected = entry.sequence + 1

    def _holes(self) -> dict[int, int]:
        """First and last number of every range that a reconcile declared lost."""
        return {int(first): int(last) for first, last in self._run.broker.hash_items(self._run.key("holes"))}


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


def _entry(entry_id: str, fields: dict[str, bytes]) -> LogEntry:
    """One stream entry as a LogEntry."""
    return LogEntry(
        sequence=int(entry_id.partition("-")[0]),
        group_id=text(fields["group_id"]),
        producer=text(fields["producer"]),
        payload=fields["payload"],
        entry_id=entry_id,
        appended_at_seconds=int(fields["at_ms"]) / 1000,
    )
