"""A second learner on the log of another one: its own cursor, objective and weights, and no hold on the run.

It reads what the run's learner has made durable from the archive, and what is newer from the log. It takes no
fence, frees nothing, commits nothing and publishes nothing, so the run goes on as if it were not there.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from asympo.common.archive import ArchivedEntry, ArchiveStore, open_archive
from asympo.common.errors import BadSetting, BrokerUnavailable, CorruptArchive, SequenceGap
from asympo.common.lifecycle import StopSignal
from asympo.common.object_store import ObjectStoreOptions
from asympo.common.rollout_log import LogEntry, RunConfig, RunLog, RunState
from asympo.learner.log.segment import LogSegment, SegmentReader
from asympo.learner.progress import Progress
from asympo.learner.replay.consumer import LogConsumer
from asympo.learner.replay.followed_decisions import FollowedDecisions
from asympo.learner.replay.followed_settings import FollowedSettings
from asympo.learner.settings import LearnerSettings
from asympo.learner.state.decision_files import open_decisions
from asympo.learner.state.open import open_states
from asympo.learner.state.saver import trained_ids_of
from asympo.learner.state.store import TrainingState
from asympo.learner.step.compute import Compute, set_up_torch
from asympo.learner.step.stepper import build_reader, build_step_parts, rebuilt

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0
_FENCE = 1
"""Of a second learner's own states: one process holds their directory at a time."""


class FollowedLog:
    """The log of a run, archive included, as a SegmentReader reads it."""

    num_reconciles = 0

    def __init__(self, *, run_log: RunLog, archive: ArchiveStore, progress: Progress) -> None:
        self._run_log = run_log
        self._archive = archive
        self._archived: Iterator[ArchivedEntry] = iter(())
        self._archived_after = -1
        self.progress = progress

    def read(self, *, after_sequence: int, max_count: int, block_seconds: float) -> Sequence[LogEntry]:
        """Entries in order: durable ones from the archive where there is one, later ones from the log.

        Raises SequenceGap when entries are in neither, or when the broker went back behind the cursor.
        """
        while True:
            commit = self._run_log.commits.last()
            if commit is not None and commit.sequence > after_sequence:
                found = self._from_archive(after_sequence, max_count)
                if found:
                    return found
            self._refuse_rollback(after_sequence)
            try:
                return self._run_log.reader.read(
                    after_sequence=after_sequence, max_count=max_count, block_seconds=block_seconds
                )
            except SequenceGap:
                # What the learner has committed meanwhile is in the archive, and no longer in the log.
                if self._run_log.commits.last() == commit:
                    raise

    def free(self, group_ids: Sequence[str]) -> None:
        """Slots are the run's own learner's to free."""

    def dead_letter(self, entry: LogEntry, reason: str) -> None:
        """The run's own learner sets it aside; a second learner only leaves it out."""

    def is_at_end(self, after_sequence: int) -> bool:
        """Whether the run is over and nothing follows."""
        stats = self._run_log.stats.read()
        is_over = stats.state in (RunState.FINISHED, RunState.FAILED)
        return is_over and self._run_log.reader.is_at_end(after_sequence)

    def _from_archive(self, after_sequence: int, max_count: int) -> list[LogEntry]:
        found = self._next(max_count) if self._archived_after == after_sequence else []
        if not found:
            # Where it goes on, it may have ended at what was the archive's end when it was opened.
            self._archived = _entries_after(self._archive, after_sequence)
            found = self._next(max_count)
        self._archived_after = found[-1].sequence if found else -1
        return found

    def _next(self, max_count: int) -> list[LogEntry]:
        return [entry.to_log_entry() for entry in islice(self._archived, max_count)]

    def _refuse_rollback(self, after_sequence: int) -> None:
        last = self._run_log.stats.read().last_sequence
        if last < after_sequence:
            raise SequenceGap(
                f"the broker of run {self._run_log.run!r} went back to group {last}, and group "
                f"{after_sequence} was trained here already: numbers will be given out again; give "
                "another --out"
            )


def _entries_after(archive: ArchiveStore, after_sequence: int) -> Iterator[ArchivedEntry]:
    """Nothing if no archive follows: the log may still hold what is wanted."""
    try:
        yield from archive.entries(after_sequence=after_sequence)
    except (CorruptArchive, SequenceGap) as error:
        log.debug("Not from the archive: %s", error)


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondLearnerReport:
    """Where a second learner stands when it ends."""

    step: int
    """Optimizer steps it has made."""
    last_sequence: int
    """Last group it consumed."""
    state: str
    """Directory of its training state."""
    objective: str
    is_run_over: bool
    """Whether the run had ended and left nothing to train."""


class SecondLearner:
    """Trains along until the run is over, a step is reached or it is told to stop."""

    def __init__(
        self,
        *,
        settings: FollowedSettings,
        config: RunConfig,
        tokenizer: Any,
        run_log: RunLog,
        run_directory: Path,
        object_store: ObjectStoreOptions | None,
        out: Path,
        any_build: bool,
        stop: StopSignal,
    ) -> None:
        self._settings = settings
        self._config = config
        self._tokenizer = tokenizer
        self._stop = stop
        self._states = open_states(out, config.run)
        self._states.sweep(fence=_FENCE)
        name = self._states.newest()
        state = self._states.read(name) if name else None
        archive = open_archive(run_directory, object_store)
        self._decisions = FollowedDecisions(
            run_log=run_log,
            files=open_decisions(run_directory, object_store),
            archive=archive,
            own=self._states.decisions,
            fence=_FENCE,
            num_threads=settings.newest.num_threads,
            any_build=any_build,
        )
        step = state.step + 1 if state else 1
        self._compute, self._used = self._decisions.compute(step), settings.at(step)
        set_up_torch(seed=self._used.seed, num_threads=self._compute.num_threads)
        self._built = build_step_parts(self._used, self._compute, rows=self._decisions)
        if name:
            self._states.load(name, model=self._built.policy.model, optimizer=self._built.optimizer)
        self._trained = trained_ids_of(state, num_prompts=config.num_prompts)
        self._log = FollowedLog(
            run_log=run_log,
            archive=archive,
            progress=Progress(step=state.step, sequence=state.sequence) if state else Progress(),
        )
        self._training = LogConsumer(
            source=self._log,
            reader=self._reader(),
            stepper=self._built.stepper,
            trained=self._trained,
        )

    def run(self, *, until_step: int | None = None) -> SecondLearnerReport:
        """Trains; saves every save_every segments and at the end. Raises SequenceGap, PublishFailed.

        Ends with the run, at its total_steps, or at `until_step`.
        """
        ends = (until_step, self._settings.newest.total_steps)
        last_step = min((step for step in ends if step is not None), default=None)
        is_over, num_unsaved = False, 0
        while not self._stop.is_set and (last_step is None or self._training.progress.step < last_step):
            segment, is_over = self._advance()
            if segment is None:
                if is_over and self._training.reader.read_cursor == self._training.progress.sequence:
                    break
                continue
            log.info(
                "Step %d, groups up to %d", self._training.progress.step, self._training.progress.sequence
            )
            num_unsaved += 1
            if num_unsaved >= self._settings.newest.save_every:
                self._save()
                num_unsaved = 0
        return SecondLearnerReport(
            step=self._training.progress.step,
            last_sequence=self._training.progress.sequence,
            state=str(self._states.path / self._save()),
            objective=self._used.objective,
            is_run_over=is_over,
        )

    def _save(self) -> str:
        state = TrainingState(
            step=self._training.progress.step,
            fence=_FENCE,
            sequence=self._training.progress.sequence,
            trained_ids=self._training.trained.to_bytes(),
            decisions=self._decisions.at(self._training.progress.step),
        )
        self._settings.refresh(step=state.step)
        name = self._states.save(state, model=self._built.policy.model, optimizer=self._built.optimizer)
        self._states.prune(keep=self._settings.newest.keep_states)
        return name

    def _advance(self) -> tuple[LogSegment | None, bool]:
        """The next segment, if there is one, and whether the run is over; waits while the broker is away."""
        try:
            self._decisions.refresh(step=self._training.progress.step)
            step = self._training.progress.step + 1
            self._use(self._decisions.compute(step), self._settings.at(step))
            is_over = self._log.is_at_end(self._training.reader.read_cursor)
            return self._training.advance(block_seconds=_POLL_SECONDS, is_last=is_over), is_over
        except BrokerUnavailable as error:
            log.warning("Waiting for the broker: %s", error)
            self._stop.wait(_RETRY_SECONDS)
            return None, False

    def _use(self, compute: Compute, settings: LearnerSettings) -> None:
        """Computes the next step as the run did."""
        if (compute, settings) == (self._compute, self._used):
            return
        if compute.device != self._compute.device:
            raise BadSetting(
                f"the run went from {self._compute.device} to {compute.device} after step "
                f"{self._training.progress.step}, and a second learner stays on one device"
            )
        set_up_torch(seed=settings.seed, num_threads=compute.num_threads)
        self._compute, self._used = compute, settings
        self._built = rebuilt(self._built, settings, compute, rows=self._decisions)
        self._training.stepper, self._training.reader = self._built.stepper, self._reader()

    def _reader(self) -> SegmentReader:
        """From the last group consumed; what another one has read and not given out is read again."""
        return build_reader(
            policy=self._built.policy,
            tokenizer=self._tokenizer,
            config=self._config,
            max_row_tokens=self._used.max_row_tokens,
            log=self._log,
            is_trained=lambda group_id: group_id in self._trained,
        )
