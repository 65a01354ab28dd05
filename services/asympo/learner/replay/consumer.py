"""Training from a log without owning it: no fence, no publishing, the reader and steps of the learner."""

import logging

from asympo.common.trained_ids import TrainedIds
from asympo.learner.log.segment import LogSegment, SegmentLog, SegmentReader
from asympo.learner.step.step import Stepper

log = logging.getLogger(__name__)


class LogConsumer:
    """Consumes segments of a log in order."""

    def __init__(
        self, *, source: SegmentLog, reader: SegmentReader, stepper: Stepper, trained: TrainedIds
    ) -> None:
        self.reader = reader
        """What the next segment is read with; may be replaced between segments."""
        self.stepper = stepper
        """How the next step is computed; may be replaced between segments."""
        self.trained = trained
        """Ids of every group consumed."""
        self.progress = source.progress
        """Where it stands."""

    def advance(self, *, block_seconds: float = 0.0, is_last: bool = False) -> LogSegment | None:
        """Consumes the next segment; None when the log holds no complete one.

        `is_last`: no entry follows what can be read, so the rest makes a segment.
        """
        segment = self.reader.poll(block_seconds=block_seconds)
        if segment is None and is_last:
            segment = self.reader.flush()
        if segment is None:
            return None
        if any(group.has_signal for group in segment.groups):
            result = self.stepper.step(segment, step=self.progress.step + 1)
            self.progress.step += 1
            if not result.is_applied:
                log.error("Step %d is skipped: its gradient is not finite", self.progress.step)
        for group_id in segment.group_ids:
            self.trained.add(group_id)
        self.progress.sequence = segment.last_sequence
        return segment
