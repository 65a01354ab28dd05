"""Writes each step down: for the page, the trackers, the metrics and the log."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from asympo.common.rollout_log import LogStats
from asympo.learner.context import LearnerContext
from asympo.learner.log.segment import LogSegment
from asympo.learner.record.samples import sample_groups
from asympo.learner.record.step_record import step_row
from asympo.learner.record.trackers import Trackers
from asympo.learner.step.step import StepResult

log = logging.getLogger(__name__)


class StepRecorder:
    """Keeps the time between two steps and makes a row of each step."""

    def __init__(
        self,
        *,
        context: LearnerContext,
        trackers: Trackers,
        decode: Callable[[Sequence[int]], str],
        wall_seconds: float,
    ) -> None:
        """`wall_seconds`: how long the run was trained by learners before this one."""
        self._context = context
        self._trackers = trackers
        self._decode = decode
        self._started_at = context.clock.monotonic_seconds() - wall_seconds
        self._save_seconds = 0.0
        self._appended_before: tuple[int, int] | None = None
        self._row: dict[str, Any] = {}
        self.wait_seconds = 0.0
        """Waited for groups since the last step."""

    @property
    def wall_seconds(self) -> float:
        """Time the run has been trained for, over all its learners."""
        return self._context.clock.monotonic_seconds() - self._started_at

    def waited(self, seconds: float) -> None:
        """Notes how long no group was there."""
        self.wait_seconds += seconds
        self._context.metrics.waited(seconds)

    def saved(self, seconds: float) -> None:
        """Notes how long a save and its commit took."""
        self._save_seconds += seconds
        self._context.metrics.committed(seconds=seconds, at_seconds=self._context.clock.now_seconds())

    def stepped(
        self,
        segment: LogSegment,
        result: StepResult,
        *,
        staleness: list[int],
        busy_seconds: float,
        published: tuple[float, int],
        policy_step: int,
        stats: LogStats,
    ) -> None:
        """A step was made of the segment; `busy_seconds` is what it took with all that goes with it.

        `published` is the duration and the bytes of what was published since the step before.
        """
        context, step = self._context, self._context.progress.step
        row = step_row(
            step=step,
            fence=context.progress.fence,
            segment=segment,
            result=result,
            staleness=staleness,
            generation_staleness_mean=self._generation_staleness(stats),
            stats=stats,
            seconds={
                "wall": self.wall_seconds,
                "wait": self.wait_seconds,
                "busy": busy_seconds,
                "publish": published[0],
                "save": self._save_seconds,
            },
            publish_bytes=published[1],
            policy_step=policy_step,
        )
        self.wait_seconds = self._save_seconds = 0.0
        context.control.add_row(row)
        self._row = row | context.control.evals.take_numbers()
        self._trackers.log(step, self._row)
        context.metrics.step_done(
            row, computed_tokens=result.num_computed_tokens, is_applied=result.is_applied
        )
        if context.control.samples is not None:
            context.control.samples.add(sample_groups(segment, step=step, decode=self._decode))
        log.info(
            "Step %d: reward %.3f, NLL + %s - %s, %d groups, %.0f tokens/s",
            *(step, row["reward_mean"], _short(row["nll_positive"]), _short(row["nll_negative"])),
            *(row["groups"], row["tokens_per_second"]),
        )

    def record_late_results(self) -> None:
        """Adds what evaluations have found since the last step to its row: no later step will have it."""
        numbers = self._context.control.evals.take_numbers() if self._row else {}
        if numbers:
            self._row |= numbers
            self._trackers.amend(self._row["step"], self._row, numbers)

    def _generation_staleness(self, stats: LogStats) -> float | None:
        """Mean over the groups appended since the step before; None at the first step of a learner."""
        now = (stats.generation_staleness_policies_total, stats.appended)
        before, self._appended_before = self._appended_before, now
        if before is None or now[1] <= before[1]:
            return None
        return (now[0] - before[0]) / (now[1] - before[1])


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
