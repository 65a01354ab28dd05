"""The learner's own record of what it consumed: `<root>/<run>/trained.jsonl`.

One row a segment of the log: `step` (null when the segment was passed over for lack of signal), `fence`,
`first_sequence`, `last_sequence`, and `group_ids`, those of all its entries, dead-lettered ones included. The
first number is the one after the cursor, whether the broker still had it or had lost it.

Every row is on storage before its segment can be committed. A learner that died before the commit left rows
of what its successor consumes again, perhaps as other groups where the broker lost some: **a row replaces all
earlier ones whose last_sequence is at or above its first_sequence**. A learner that wakes after another took
the run over may add a row before it notices: **a row whose fence is below that of a row before it counts for
nothing**, here and in `metrics.jsonl`. What remains is what made the weights.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asympo.common.errors import PublishFailed
from asympo.common.jsonl import JsonlWriter, read_jsonl
from asympo.learner.log.segment import LogSegment

log = logging.getLogger(__name__)


def recorded_fence(run_directory: Path) -> int:
    """The highest fence in the rows of a run, 0 without any: rows of a lower one would count for nothing."""
    return max(
        (
            row["fence"]
            for name in ("trained.jsonl", "metrics.jsonl")
            for row in read_jsonl(run_directory / name)
            if isinstance(row.get("fence"), int)
        ),
        default=0,
    )


class TrainedLog:
    """Writes the rows; one that storage refuses is kept and written before the next one."""

    def __init__(self, writer: JsonlWriter, *, on_failure: Callable[[], None]) -> None:
        self._writer = writer
        self._on_failure = on_failure
        self._unwritten: list[dict[str, Any]] = []

    def add(self, segment: LogSegment, *, after_sequence: int, step: int | None, fence: int) -> None:
        """One segment that was consumed when the cursor stood at `after_sequence`."""
        self._unwritten.append(
            {
                "step": step,
                "fence": fence,
                "first_sequence": after_sequence + 1,
                "last_sequence": segment.last_sequence,
                "group_ids": list(segment.group_ids),
            }
        )
        try:
            self.flush()
        except PublishFailed as error:
            log.warning("%s", error)

    def flush(self) -> None:
        """Tries again what could not be written; raises PublishFailed while storage refuses it."""
        try:
            while self._unwritten:
                self._writer.append(self._unwritten[0])
                del self._unwritten[0]
        except OSError as error:
            self._on_failure()
            raise PublishFailed(
                f"{len(self._unwritten)} rows wait to be written to {self._writer.path}: "
                f"{error.strerror or error}"
            ) from error
