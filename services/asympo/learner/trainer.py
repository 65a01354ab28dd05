"""The loop: read a segment, train, publish, free, save, commit, in the order that loses nothing."""

import logging
from collections.abc import Callable

from asympo.common.errors import AsympoError, PolicyRejected, PublishFailed
from asympo.common.foreign.text import printable
from asympo.common.rollout_log import CommitRecord, RunState
from asympo.learner.context import LearnerContext
from asympo.learner.control import LearnerState
from asympo.learner.ledger import Ledger
from asympo.learner.log.segment import LogSegment, SegmentReader
from asympo.learner.log.session import LogSession
from asympo.learner.publish.background import BackgroundPublisher
from asympo.learner.record.recorder import StepRecorder
from asympo.learner.state.saver import Saver
from asympo.learner.step.probe import ProbeText
from asympo.learner.step.step import Stepper
from asympo.local.heap import return_free_pages

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_STARVED_SECONDS = 1.0
"""Waited so long since the last step, a learner asks whether the broker has memory for more groups."""
_MAX_COMMITS_BEHIND = 4
"""Missed commits in a row after which training waits for storage: the log must stay bounded."""


class Trainer:
    """Runs in the main thread, until stopped, finished, fenced or broken."""

    def __init__(
        self,
        *,
        context: LearnerContext,
        session: LogSession,
        reader: SegmentReader,
        stepper: Stepper,
        publishing: BackgroundPublisher,
        saver: Saver,
        ledger: Ledger,
        recorder: StepRecorder,
    ) -> None:
        self._settings = context.settings
        self._control = context.control
        self._progress = context.progress
        self._metrics = context.metrics
        self._stop = context.stop
        self._clock = context.clock
        self._gpu = context.gpu
        self._session = session
        self._reader = reader
        self._stepper = stepper
        self._publishing = publishing
        self._saver = saver
        self._ledger = ledger
        self._recorder = recorder
        self._save_at: float | None = None
        self._probes: tuple[ProbeText, ...] = ()
        self._held: LogSegment | None = None
        self._is_closing = False

    def start(self) -> None:
        """Makes the policy of the loaded state the visible one."""
        self._publishing.start(step=self._progress.step)
        self._metrics.training_begins(at_seconds=self._clock.now_seconds())
        if self._session.stats().state is not RunState.RUNNING:
            self._session.set_state(RunState.RUNNING)

    def run(
        self,
        *,
        lost: Callable[[], Exception | None] = lambda: None,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> bool:
        """Trains; True when the run is finished, False when it was stopped before.

        `lost` tells of a fence that nothing keeps alive any more, and why: nothing may be written then.
        `on_failure` is told what ends the training before that waits for a publish in flight.
        """
        try:
            return self._run(lost)
        except Exception as error:
            if self._publishing.is_in_flight:
                # Its storage may hang: then nobody says the error later, and whoever is told bounds the wait.
                is_ours = isinstance(error, AsympoError)
                log.error("Training ends once its publish has ended: %s", error, exc_info=not is_ours)
            on_failure(error)
            raise
        finally:
            self._control.refuse_saves()
            self._publishing.close()

    def _run(self, lost: Callable[[], Exception | None]) -> bool:
        while True:
            if (reason := lost()) is not None:
                raise reason
            if self._stop.is_set:
                self._gpu.give_back()
                self._control.enter(LearnerState.DRAINING)
                self._close_up()
                return False
            self._do_what_is_owed()
            if self._is_finished():
                self._finish()
                return True
            if self._control.is_paused:
                self._gpu.give_back()
                self._control.enter(LearnerState.PAUSED)
                self._session.stay()
                self._control.wait_while_paused(_POLL_SECONDS)
            elif self._num_commits_due >= _MAX_COMMITS_BEHIND:
                self._gpu.give_back()
                self._session.stay()
                self._stop.wait(_POLL_SECONDS)
            else:
                self._turn()

    def _turn(self) -> None:
        before = self._clock.monotonic_seconds()
        segment = self._next_segment()
        waited = self._clock.monotonic_seconds() - before
        if not self._settings.max_staleness:
            # Synchronous: no group can come before the policy is out, so that wait is not for groups.
            waited = max(0.0, waited - self._publishing.seconds_since(before))
        self._recorder.waited(waited)
        if segment is None:
            if self._recorder.wait_seconds >= _STARVED_SECONDS:
                self._refuse_to_wait_in_vain()
                self._make_room()
            return
        if self._control.is_paused or self._stop.is_set:
            # Read, not begun: it is the next step, or read again by the next learner.
            self._held = segment
            return
        self._consume(segment)

    def _next_segment(self) -> LogSegment | None:
        held, self._held = self._held, None
        if held is not None:
            return held
        self._control.enter(LearnerState.WAITING)
        # What a publish beside has taken.
        self._gpu.give_back()
        segment = self._reader.poll(block_seconds=_POLL_SECONDS)
        if segment is None and self._is_log_exhausted():
            segment = self._reader.flush()
        return segment

    def look_after_the_end(self) -> None:
        """Keeps the finished run on its broker, and writes down what evaluations have found meanwhile."""
        self._recorder.record_late_results()
        self._session.stay()

    # --- one segment -----------------------------------------------------------------------------------

    def _consume(self, segment: LogSegment) -> None:
        self._publishing.settle(wait=False)
        if segment.num_reconciles != self._session.num_reconciles:
            # A broker that went back in time may have other entries under these numbers by now.
            log.info(
                "Entries %d to %d are read again: the log was reconciled since they were read",
                *(segment.first_sequence, segment.last_sequence),
            )
            return
        if not any(group.has_signal for group in segment.groups):
            self._pass_over(segment)
            return
        if not self._has_gpu():
            self._held = segment
            self._session.stay()
            return
        self._control.enter(LearnerState.TRAINING)
        try:
            self._train(segment)
        finally:
            self._gpu.give_back()
        if self._progress.step % self._settings.save_every == 0 or self._is_much_uncommitted:
            self._save()

    def _has_gpu(self) -> bool:
        """Whether its turn on the GPU has begun; the wait for it is one like that for groups."""
        before = self._clock.monotonic_seconds()
        self._control.enter(LearnerState.WAITING)
        has_turn = self._gpu.take(within_seconds=_POLL_SECONDS)
        self._recorder.waited(self._clock.monotonic_seconds() - before)
        return has_turn

    def _train(self, segment: LogSegment) -> None:
        """One step, and its policy begun to be published."""
        begun = self._clock.monotonic_seconds()
        staleness = [self._publishing.staleness_of(group.appended_at_seconds) for group in segment.groups]
        result = self._stepper.step(segment, step=self._progress.step + 1)
        self._ledger.trained(segment, row_limits=self._stepper.row_limits, staleness=staleness, begun=begun)
        step = self._progress.step
        self._probes = result.probes
        if not result.is_applied:
            log.error("Step %d is skipped: its gradient is not finite", step)
        if step % self._settings.publish_every == 0:
            self._publishing.begin(step=step, probes=self._probes)
        self._recorder.stepped(
            segment,
            result,
            staleness=staleness,
            busy_seconds=self._clock.monotonic_seconds() - begun,
            stats=self._session.stats(),
            published=self._publishing.take_totals(),
            policy_step=self._publishing.published_step or 0,
        )

    def _pass_over(self, segment: LogSegment) -> None:
        """A segment without signal moves the cursor and nothing else."""
        self._ledger.passed_over(segment, row_limits=self._stepper.row_limits)
        where = (segment.first_sequence, segment.last_sequence)
        if segment.groups:
            is_many = self._ledger.empty_in_a_row >= self._settings.max_empty_segments
            log.log(
                logging.WARNING if is_many else logging.INFO,
                "Groups %d to %d have no signal: all rewards of each are equal (%d such segments in a row%s)",
                *(*where, self._ledger.empty_in_a_row),
                ": the task is too easy, too hard, or scored wrongly" if is_many else "",
            )
        else:
            reason = printable(segment.reasons[segment.first_sequence])
            log.warning("Entries %d to %d were all set aside, the first because: %s", *where, reason)
        if self._ledger.segments_since_commit >= self._settings.save_every or self._is_much_uncommitted:
            self._save()

    # --- publish, save, finish -------------------------------------------------------------------------

    def _do_what_is_owed(self) -> None:
        now = self._clock.monotonic_seconds()
        self._publishing.settle(wait=False)
        if self._publishing.retry_at is not None and now >= self._publishing.retry_at:
            self._publishing.begin(step=self._progress.step, probes=self._probes)
        if self._save_at is not None and now >= self._save_at:
            self._save()
        self._save_as_asked()

    def _save_as_asked(self) -> None:
        request = self._control.take_save_request()
        if request is None:
            return
        try:
            request.commit = self._save(retain=request.retain)
        finally:
            request.is_done.set()

    def _make_room(self) -> None:
        """Commits before its time when no group comes because the broker has no memory left for one."""
        if not self._ledger.segments_since_commit or self._save_at is not None:
            return
        if self._session.is_broker_full():
            log.warning(
                "The broker is full and nothing is left to read: committing at step %d", self._progress.step
            )
            self._save()

    def _refuse_to_wait_in_vain(self) -> None:
        """Raises PolicyRejected when groups can only come from the newest policy, and nobody may serve it."""
        if 0 not in (self._settings.max_staleness, self._settings.max_generation_staleness):
            return
        policy = self._session.latest_policy()
        report = self._session.report_against(step=policy.step, fence=policy.fence) if policy else None
        if report is not None:
            raise PolicyRejected(
                f"generator {report.holder!r} marked the newest policy, of step {report.step}, as bad "
                f"({report.reason}), and this run takes groups of no older one: look at that "
                "generator, and start the learner again, which publishes the policy anew"
            )

    @property
    def _num_commits_due(self) -> int:
        """By the number of segments since the last commit, or by their size."""
        by_size = self._ledger.bytes_since_commit // self._settings.max_uncommitted_bytes
        return max(self._ledger.segments_since_commit // self._settings.save_every, by_size)

    @property
    def _is_much_uncommitted(self) -> bool:
        """Whether the next commit cannot wait for `save_every`; one that failed has its own time."""
        is_large = self._ledger.bytes_since_commit >= self._settings.max_uncommitted_bytes
        return is_large and self._save_at is None

    def _save(self, *, retain: bool = False) -> CommitRecord | None:
        """Saves and commits what was consumed; None when storage failed, to be tried again.

        `retain`: pruning never deletes that state.
        """
        if not self._ledger.segments_since_commit and self._session.committed is not None:
            return self._retained(self._session.committed) if retain else self._session.committed
        if not self._ledger.segments_since_commit and not retain:
            return None
        self._publishing.settle(wait=True)
        if self._publishing.retry_at is not None and not self._is_closing:
            # The storage that refused the policy is tried again first, and in order.
            self._save_at = self._publishing.retry_at
            return None
        begun = self._clock.monotonic_seconds()
        try:
            self._ledger.flush()
            name = self._saver.save(step=self._progress.step, wall_seconds=self._recorder.wall_seconds)
        except PublishFailed as error:
            log.error("%s; the next attempt is in %.0f s", error, self._settings.publish_retry_seconds)
            self._metrics.save_failed()
            self._save_at = self._clock.monotonic_seconds() + self._settings.publish_retry_seconds
            return None
        commit = self._ledger.commit(state_name=name)
        self._save_at = None
        self._saver.prune(committed=name)
        return_free_pages()
        self._recorder.saved(self._clock.monotonic_seconds() - begun)
        return self._retained(commit) if retain else commit

    def _retained(self, commit: CommitRecord) -> CommitRecord | None:
        """The commit once its state is kept for good; None when storage failed."""
        try:
            self._saver.retain(commit.state_name)
        except PublishFailed as error:
            log.error("%s", error)
            return None
        return commit

    def _is_log_exhausted(self) -> bool:
        """Whether no entry will ever follow what was read."""
        if not self._settings.num_epochs:
            return False
        return self._session.stats().is_exhausted and self._session.is_at_end(self._reader.read_cursor)

    def _is_finished(self) -> bool:
        total = self._settings.total_steps
        if total is not None and self._progress.step >= total:
            return True
        is_idle = self._held is None and self._reader.read_cursor == self._progress.sequence
        return is_idle and self._is_log_exhausted()

    def _close_up(self) -> None:
        """Publish, save, commit. Raises PublishFailed when storage does not let it."""
        self._publishing.settle(wait=True)
        failed = self._progress.step != self._publishing.published_step and not self._publishing.publish(
            step=self._progress.step, probes=self._probes
        )
        # The state matters more than the policy: the next learner publishes it first thing.
        self._is_closing = True
        if self._ledger.segments_since_commit and self._save() is None:
            raise PublishFailed(
                f"step {self._progress.step} could not be saved: the run goes on from its last commit, step "
                f"{self._session.committed.step if self._session.committed else 0}"
            )
        self._save_as_asked()
        self._recorder.record_late_results()
        if failed:
            raise PublishFailed(
                f"the policy of step {self._progress.step} could not be published before the end"
            )

    def _finish(self) -> None:
        self._control.enter(LearnerState.DRAINING)
        self._close_up()
        self._session.set_state(RunState.FINISHED, reason=f"trained {self._progress.step} steps")
        log.info("The run is finished at step %d", self._progress.step)
