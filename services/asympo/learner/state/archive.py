"""Collects what was consumed since the last durable state, for the archive part that goes with the next."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asympo.common.archive import (
    ArchivedEntry,
    ArchiveStore,
    EntryOutcome,
    PartInfo,
    PartRef,
    ReadableGroup,
)
from asympo.learner.log.segment import LogSegment, ReadGroup

log = logging.getLogger(__name__)

_Row = tuple[ArchivedEntry, ReadableGroup | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenPart:
    """A part that is on storage and that no state names yet."""

    tip: PartRef | None
    """What the training state is to name: this part, or the last one when there was nothing new."""
    num_rows: int
    """Rows in it."""
    sequence: int
    """Cursor that it reaches."""
    step: int
    """Optimizer step that it reaches."""


class Archive:
    """The learner's end of the archive; off, it only hands the tip of earlier parts on.

    `write` before the training state, `made_durable` after it; groups may be consumed between the two. What
    was written and not made durable is written again, in a part that begins where the last durable one ended.
    """

    def __init__(
        self,
        *,
        store: ArchiveStore,
        is_on: bool,
        run: str,
        recipe: Mapping[str, Any],
        tip: PartRef | None,
        sequence: int,
        step: int,
    ) -> None:
        """`sequence` and `step`: of the state resumed from, whose archive ends with `tip`."""
        self._store = store
        self._is_on = is_on
        self._run = run
        self._recipe = recipe
        self._tip = tip
        self._sequence = sequence
        self._step = step
        self._begun_at = sequence
        self._rows: list[_Row] = []
        self._row_limits: list[tuple[int, int, int]] = []
        self._is_swept = False
        self._unnamed: set[str] = set()
        self._named: set[str] = set()
        """Parts that states of ours named before what dead learners left was swept."""

    def consumed(self, segment: LogSegment, *, step: int | None, row_limits: tuple[int, int]) -> None:
        """One segment, with the optimizer step it made, or None when it was passed over.

        `row_limits`: most tokens of a row and logits at once, as the step used them.
        """
        if not self._is_on:
            return
        self._rows.extend(_rows(segment, step))
        if step is not None:
            self._row_limits.append((step, *row_limits))

    def write(self, *, fence: int, sequence: int, step: int) -> WrittenPart:
        """Puts everything consumed up to `sequence` on storage; raises PublishFailed."""
        rows = list(self._rows)
        tip = self._tip
        if rows:
            info = PartInfo(
                run=self._run,
                fence=fence,
                first=self._sequence + 1,
                last=sequence,
                step_before=self._step,
                step=step,
                lost=_gaps([entry.sequence for entry, _ in rows], self._sequence + 1, sequence),
                parent=tip,
                recipe=self._recipe,
                row_limits=_changes(self._row_limits),
            )
            tip = self._store.write(rows, info)
            self._unnamed.add(tip.name)
        return WrittenPart(tip=tip, num_rows=len(rows), sequence=sequence, step=step)

    def made_durable(self, part: WrittenPart, *, fence: int) -> None:
        """The training state that names the part is on storage: what it replaces can go."""
        del self._rows[: part.num_rows]
        self._row_limits = [limits for limits in self._row_limits if limits[0] > part.step]
        self._tip, self._sequence, self._step = part.tip, part.sequence, part.step
        if not self._is_on or part.tip is None:
            return
        if not self._is_swept:
            self._named.add(part.tip.name)
            self._is_swept = self._swept(fence=fence)
        for name in self._unnamed - {part.tip.name}:
            self._store.delete(name)
        self._unnamed = set()

    def _swept(self, *, fence: int) -> bool:
        """Whether what dead learners left is gone; False when storage failed: the next save tries again."""
        try:
            self._store.sweep(after_sequence=self._begun_at, fence=fence, kept=self._named)
        except OSError as error:
            log.warning("Archive parts that no training state names stay for now: %s", error)
            return False
        return True


def _changes(row_limits: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """The first step, and those whose limits differ from the step before."""
    return tuple(
        limits
        for index, limits in enumerate(row_limits)
        if index == 0 or limits[1:] != row_limits[index - 1][1:]
    )


def _rows(segment: LogSegment, step: int | None) -> list[_Row]:
    groups = {group.sequence: group for group in segment.groups}
    rows: list[_Row] = []
    for entry in segment.entries:
        group = groups.get(entry.sequence)
        if group is None:
            outcome = EntryOutcome.DEAD_LETTER
        else:
            outcome = EntryOutcome.TRAINED if group.has_signal else EntryOutcome.WITHOUT_SIGNAL
        archived = ArchivedEntry.of(
            entry,
            outcome=outcome,
            reason=segment.reasons.get(entry.sequence, ""),
            segment_end=segment.last_sequence,
            step=step,
        )
        rows.append((archived, None if group is None else _readable(group)))
    return rows


def _readable(group: ReadGroup) -> ReadableGroup:
    return ReadableGroup.of(
        group.record,
        prompt_ids=group.prompt_ids,
        response_ids=group.response_ids,
        advantages=group.advantages,
    )


def _gaps(sequences: list[int], first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Ranges of first..last that are not in ascending `sequences`."""
    gaps = []
    for number in (*sequences, last + 1):
        if number > first:
            gaps.append((first, number - 1))
        first = number + 1
    return tuple(gaps)
