"""The loop: read a segment, train, publish, free, save, commit, in the order that loses nothing."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asympo.common.clock import Clock
from asympo.common.errors import Fenced, PublishFailed
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import CommitRecord, LogStats, RunState
from asympo.learner.control import LearnerControl, LearnerState
from asympo.learner.log.segment import Segment, SegmentReader
from asympo.learner.log.session import LogSession
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.publish.background import BackgroundPublisher
from asympo.learner.record.step_record import sample_groups, step_row
from asympo.learner.record.traces import GroupTraces
from asympo.learner.record.trackers import Trackers
from asympo.learner.record.trained_log import TrainedLog
from asympo.learner.settings import LearnerSettings
from asympo.learner.state.archive import Archive
from asympo.learner.state.saver import Saver
from asympo.learner.step.probe import ProbeText
from asympo.learner.step.step import Stepper, StepResult

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_STARVED_SECONDS = 1.0
"""Waited so long since the last step, a learner asks whether the broker has memory for more groups."""
_MAX_COMMITS_BEHIND = 4
"""Missed commits in a row after which training waits for storage: the log must stay bounded."""


@dataclass(frozen=True, kw_only=True)
class TrainerParts:
    """What the loop works with."""

    settings: LearnerSettings
    learner: LearnerControl
    session: LogSession
    reader: SegmentReader
    stepper: Stepper
    publishing: BackgroundPublisher
    saver: Saver
    archive: Archive
    metrics: LearnerMetrics
    trackers: Trackers
    trained_log: TrainedLog
    traces: GroupTraces
    decode: Callable[[Sequence[int]], str]
    stop: StopSignal
    clock: Clock


class Trainer:
    """Runs in the main thread, until stopped, finished, fenced or broken."""

    def __init__(self, parts: TrainerParts, *, step: int, wall_seconds: float) -> None:
        self._parts = parts
        self._step = step
        self._save_at: float | None = None
        self._probes: tuple[ProbeText, ...] = ()
        self._uncommitted: list[str] = []
        self._segments_since_commit = 0
        self._empty_in_a_row = 0
        self._held: Segment | None = None
        self._held_at_reconcile = 0
        self._is_closing = False
        self._wait_seconds = 0.0
        self._save_seconds = 0.0
        self._started_at = parts.clock.monotonic_seconds() - wall_seconds
        self._staleness_before: tuple[int, int] | None = None

    @property
    def wall_seconds(self) -> float:
        """Time the run has been trained for, over all its learners."""
        return self._parts.clock.monotonic_seconds() - self._started_at

    def start(self) -> None:
        """Makes the policy of the loaded state the visible one."""
        parts = self._parts
        parts.publishing.start(step=self._step)
        if parts.session.stats().state is not RunState.RUNNING:
            parts.session.set_state(RunState.RUNNING)

    def run(self, *, fenced: Callable[[], Fenced | None] = lambda: None) -> bool:
        """Trains; True when the run is finished, False when it was stopped before.

        ``fenced`` tells of a fence that another thread found lost: nothing may be written any more.
        """
        try:
            return self._run(fenced)
        finally:
            self._parts.publishing.close()

    def _run(self, fenced: Callable[[], Fenced | None]) -> bool:
        learner = self._parts.learner
        while True:
            if (lost := fenced()) is not None:
                raise lost
            if self._parts.stop.is_set:
                learner.enter(LearnerState.DRAINING)
                self._close_up()
                return False
            self._do_what_is_owed()
            if self._is_finished():
                self._finish()
                return True
            if learner.is_paused:
                learner.enter(LearnerState.PAUSED)
                learner.wait_while_paused(_POLL_SECONDS)
            elif self._segments_since_commit >= _MAX_COMMITS_BEHIND * self._parts.settings.save_every:
                self._parts.stop.wait(_POLL_SECONDS)
            else:
                self._turn()

    def _turn(self) -> None:
        parts = self._parts
        before = parts.clock.monotonic_seconds()
        segment = self._next_segment()
        waited = parts.clock.monotonic_seconds() - before
        if not parts.settings.max_staleness:
            # Synchronous: no group can come before the policy is out, so that wait is not for groups.
            waited = max(0.0, waited - parts.publishing.seconds_since(before))
        self._wait_seconds += waited
        parts.metrics.waited(waited)
        if segment is None:
            self._make_room()
            return
        if parts.learner.is_paused or parts.stop.is_set:
            # Read, not begun: it is the next step, or read again by the next learner.
            self._held, self._held_at_reconcile = segment, parts.session.num_reconciles
            return
        self._consume(segment)

    def _next_segment(self) -> Segment | None:
        held, self._held = self._held, None
        if held is not None and self._held_at_reconcile == self._parts.session.num_reconciles:
            return held
        self._parts.learner.enter(LearnerState.WAITING)
        segment = self._parts.reader.poll(block_seconds=_POLL_SECONDS)
        if segment is None and self._is_log_exhausted():
            segment = self._parts.reader.flush()
        return segment

    # --- one segment -----------------------------------------------------------------------------------

    def _consume(self, segment: Segment) -> None:
        parts = self._parts
        parts.publishing.settle(wait=False)
        if not any(group.has_signal for group in segment.groups):
            self._pass_over(segment)
            return
        parts.learner.enter(LearnerState.TRAINING)
        begun = parts.clock.monotonic_seconds()
        staleness = [parts.publishing.staleness_of(group.appended_at_seconds) for group in segment.groups]
        result = parts.stepper.step(segment, step=self._step + 1)
        self._step += 1
        parts.traces.trained(segment, step=self._step, begun=begun)
        self._mark_consumed(segment, step=self._step)
        parts.learner.step, parts.learner.fence = self._step, parts.session.fence.number
        self._probes = result.probes
        self._empty_in_a_row = 0
        if not result.is_applied:
            log.error("Step %d is skipped: its gradient is not finite", self._step)
        parts.publishing.hold(segment.group_ids)
        if self._step % parts.settings.publish_every == 0:
            parts.publishing.begin(step=self._step, probes=self._probes)
        parts.metrics.groups_consumed(
            trained=len(segment.groups) - segment.num_without_signal,
            without_signal=segment.num_without_signal,
            staleness=staleness,
        )
        self._record(segment, result, staleness, begun)
        if self._step % parts.settings.save_every == 0:
            self._save()

    def _pass_over(self, segment: Segment) -> None:
        """A segment without signal moves the cursor and nothing else."""
        parts = self._parts
        self._mark_consumed(segment, step=None)
        parts.session.free(segment.group_ids)
        self._empty_in_a_row += 1
        parts.metrics.segment_empty(in_a_row=self._empty_in_a_row)
        parts.metrics.groups_consumed(trained=0, without_signal=len(segment.groups), staleness=[])
        log.warning(
            "Groups %d to %d have no signal: all rewards of each are equal (%d such segments in a row%s)",
            *(segment.first_sequence, segment.last_sequence, self._empty_in_a_row),
            ": the task is too easy, too hard, or scored wrongly"
            if self._empty_in_a_row >= parts.settings.max_empty_segments
            else "",
        )
        if self._segments_since_commit >= parts.settings.save_every:
            self._save()

    def _mark_consumed(self, segment: Segment, *, step: int | None) -> None:
        parts = self._parts
        parts.trained_log.add(
            segment,
            after_sequence=parts.session.consumed_sequence,
            step=step,
            fence=parts.session.fence.number,
        )
        parts.archive.consumed(segment, step=step, row_limits=parts.stepper.row_limits)
        for group_id in segment.group_ids:
            parts.session.trained.add(group_id)
        parts.session.consumed_sequence = parts.learner.sequence = segment.last_sequence
        self._uncommitted.extend(segment.group_ids)
        self._segments_since_commit += 1

    def _record(self, segment: Segment, result: StepResult, staleness: list[int], begun: float) -> None:
        parts = self._parts
        now = parts.clock.monotonic_seconds()
        stats = parts.session.stats()
        row = step_row(
            step=self._step,
            fence=parts.session.fence.number,
            segment=segment,
            result=result,
            staleness=staleness,
            generation_staleness_mean=self._generation_staleness(stats),
            stats=stats,
            seconds={
                "wall": now - self._started_at,
                "wait": self._wait_seconds,
                "busy": now - begun,
                "publish": parts.publishing.take_seconds(),
                "save": self._save_seconds,
            },
            policy_step=parts.publishing.published_step or 0,
        )
        self._wait_seconds = self._save_seconds = 0.0
        parts.learner.add_row(row)
        parts.trackers.log(self._step, row)
        parts.metrics.step_done(row, computed_tokens=result.num_computed_tokens, is_applied=result.is_applied)
        if parts.settings.show_samples:
            parts.learner.add_samples(sample_groups(segment, step=self._step, decode=parts.decode))
        log.info(
            "Step %d: reward %.3f, NLL + %s - %s, %d groups, %.0f tokens/s",
            *(self._step, row["reward_mean"], _short(row["nll_positive"]), _short(row["nll_negative"])),
            *(row["groups"], row["tokens_per_second"]),
        )

    def _generation_staleness(self, stats: LogStats) -> float | None:
        """Mean over the groups appended since the step before."""
        now = (stats.generation_staleness_policies_total, stats.appended)
        before, self._staleness_before = self._staleness_before or (0, 0), now
        return (now[0] - before[0]) / (now[1] - before[1]) if now[1] > before[1] else None

    # --- publish, save, finish -------------------------------------------------------------------------

    def _do_what_is_owed(self) -> None:
        now = self._parts.clock.monotonic_seconds()
        publishing = self._parts.publishing
        publishing.settle(wait=False)
        if publishing.retry_at is not None and now >= publishing.retry_at:
            publishing.begin(step=self._step, probes=self._probes)
        if self._save_at is not None and now >= self._save_at:
            self._save()
        request = self._parts.learner.take_save_request()
        if request is not None:
            request.commit = self._save(retain=request.retain)
            request.is_done.set()

    def _make_room(self) -> None:
        """Commits before its time when no group comes because the broker has no memory left for one."""
        is_starved = self._wait_seconds >= _STARVED_SECONDS
        if not is_starved or not self._segments_since_commit or self._save_at is not None:
            return
        if self._parts.session.is_broker_full():
            log.warning("The broker is full and nothing is left to read: committing at step %d", self._step)
            self._save()

    def _save(self, *, retain: bool = False) -> CommitRecord | None:
        """Saves and commits what was consumed; None when storage failed, to be tried again.

        ``retain``: pruning never deletes that state.
        """
        parts = self._parts
        if not self._segments_since_commit and parts.session.committed is not None:
            return self._retained(parts.session.committed) if retain else parts.session.committed
        if not self._segments_since_commit and not retain:
            return None
        parts.publishing.settle(wait=True)
        if parts.publishing.retry_at is not None and not self._is_closing:
            # The storage that refused the policy is tried again first, and in order.
            self._save_at = parts.publishing.retry_at
            return None
        begun = parts.clock.monotonic_seconds()
        parts.trained_log.flush()
        try:
            name = parts.saver.save(step=self._step, wall_seconds=self.wall_seconds)
        except PublishFailed as error:
            log.error("%s; tried again in %.0f s", error, parts.settings.publish_retry_seconds)
            parts.metrics.save_failed()
            self._save_at = parts.clock.monotonic_seconds() + parts.settings.publish_retry_seconds
            return None
        # Slots of what no policy shows yet are left to the publish that will.
        held = parts.publishing.held
        commit = parts.session.commit(
            state_name=name,
            step=self._step,
            group_ids=[group_id for group_id in self._uncommitted if group_id not in held],
            num_consumed=len(self._uncommitted),
        )
        self._save_at = None
        self._uncommitted, self._segments_since_commit = [], 0
        parts.learner.committed_sequence = commit.sequence
        parts.saver.prune(committed=name)
        seconds = parts.clock.monotonic_seconds() - begun
        self._save_seconds += seconds
        parts.metrics.committed(seconds=seconds, at_seconds=parts.clock.now_seconds())
        return self._retained(commit) if retain else commit

    def _retained(self, commit: CommitRecord) -> CommitRecord | None:
        """The commit once its state is kept for good; None when storage failed."""
        try:
            self._parts.saver.retain(commit.state_name)
        except PublishFailed as error:
            log.error("%s", error)
            return None
        return commit

    def _is_log_exhausted(self) -> bool:
        """Whether no entry will ever follow what was read."""
        parts = self._parts
        if not parts.settings.num_epochs:
            return False
        stats = parts.session.stats()
        return stats.is_exhausted and stats.last_sequence == parts.reader.read_cursor

    def _is_finished(self) -> bool:
        total = self._parts.settings.total_steps
        if total is not None and self._step >= total:
            return True
        is_idle = (
            self._held is None and self._parts.reader.read_cursor == self._parts.session.consumed_sequence
        )
        return is_idle and self._is_log_exhausted()

    def _close_up(self) -> None:
        """Publish, save, commit. Raises PublishFailed when storage does not let it."""
        publishing = self._parts.publishing
        publishing.settle(wait=True)
        failed = self._step != publishing.published_step and not publishing.publish(
            step=self._step, probes=self._probes
        )
        # The state matters more than the policy: the next learner publishes it first thing.
        self._is_closing = True
        if self._segments_since_commit and self._save() is None:
            raise PublishFailed(
                f"step {self._step} could not be saved: the run goes on from its last commit, step "
                f"{self._parts.session.committed.step if self._parts.session.committed else 0}"
            )
        if failed:
            raise PublishFailed(f"the policy of step {self._step} could not be published before the end")

    def _finish(self) -> None:
        parts = self._parts
        parts.learner.enter(LearnerState.DRAINING)
        self._close_up()
        parts.session.set_state(RunState.FINISHED, reason=f"trained {self._step} steps")
        log.info("The run is finished at step %d", self._step)


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
