"""Told once what became of each segment of the log; tells everyone who keeps count of it."""

from asympo.common.rollout_log import CommitRecord
from asympo.learner.context import LearnerContext
from asympo.learner.log.segment import LogSegment
from asympo.learner.log.session import LogSession
from asympo.learner.publish.background import BackgroundPublisher
from asympo.learner.record.traces import GroupTraces
from asympo.learner.record.trained_log import TrainedLog
from asympo.learner.state.archive import Archive


class Ledger:
    """What was consumed: `trained` or `passed_over` once for each segment, `commit` once it is durable."""

    def __init__(
        self,
        *,
        context: LearnerContext,
        session: LogSession,
        archive: Archive,
        trained_log: TrainedLog,
        traces: GroupTraces,
        publishing: BackgroundPublisher,
    ) -> None:
        self._progress = context.progress
        self._metrics = context.metrics
        self._session = session
        self._archive = archive
        self._trained_log = trained_log
        self._traces = traces
        self._publishing = publishing
        self._uncommitted: list[str] = []
        self.segments_since_commit = 0
        """Consumed and not yet covered by a durable state."""
        self.bytes_since_commit = 0
        """Of the payloads of those segments: until the commit the broker holds them."""
        self.empty_in_a_row = 0
        """Segments without signal since the last step."""

    def trained(
        self, segment: LogSegment, *, row_limits: tuple[int, int], staleness: list[int], begun: float
    ) -> None:
        """A step was made of it; its slots are held for the next policy."""
        self._progress.step += 1
        self._traces.trained(segment, step=self._progress.step, begun=begun)
        self._consumed(segment, step=self._progress.step, row_limits=row_limits)
        self._publishing.hold(segment.group_ids, freed=segment.freed_ids)
        self.empty_in_a_row = 0
        self._metrics.groups_consumed(
            trained=len(segment.groups) - segment.num_without_signal,
            without_signal=segment.num_without_signal,
            staleness=staleness,
        )

    def passed_over(self, segment: LogSegment, *, row_limits: tuple[int, int]) -> None:
        """It had no signal: the cursor moves, its slots are free, and nothing else happens.

        One whose entries were all set aside says nothing of the task: it is in no row of empty ones.
        """
        self._consumed(segment, step=None, row_limits=row_limits)
        self._session.free(segment.group_ids)
        if segment.groups:
            self.empty_in_a_row += 1
        self._metrics.segment_empty(in_a_row=self.empty_in_a_row)
        self._metrics.groups_consumed(trained=0, without_signal=len(segment.groups), staleness=[])

    def commit(self, *, state_name: str) -> CommitRecord:
        """Makes the cursor durable, with the saved state to resume from."""
        # Slots of what no policy shows yet are left to the publish that will.
        held = self._publishing.held
        commit = self._session.commit(
            state_name=state_name,
            step=self._progress.step,
            group_ids=[group_id for group_id in self._uncommitted if group_id not in held],
            num_consumed=len(self._uncommitted),
        )
        self._uncommitted, self.segments_since_commit, self.bytes_since_commit = [], 0, 0
        return commit

    def flush(self) -> None:
        """Before a save: the rows of what it covers belong on storage first. Raises PublishFailed."""
        self._trained_log.flush()

    def _consumed(self, segment: LogSegment, *, step: int | None, row_limits: tuple[int, int]) -> None:
        self._trained_log.add(
            segment, after_sequence=self._progress.sequence, step=step, fence=self._progress.fence
        )
        self._archive.consumed(segment, step=step, row_limits=row_limits)
        for group_id in segment.group_ids:
            self._session.trained.add(group_id)
        self._progress.sequence = segment.last_sequence
        if self._session.order is not None:
            self._session.order.consumed(
                (group.record.group_id, group.has_signal) for group in segment.groups
            )
            self._session.propose_rests()
        self._uncommitted.extend(segment.group_ids)
        self.segments_since_commit += 1
        self.bytes_since_commit += sum(len(entry.payload) for entry in segment.entries)
