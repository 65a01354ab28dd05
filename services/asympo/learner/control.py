"""The one object that HTTP, gRPC and the training thread share: state, pause, save requests, history."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from asympo.common.clock import Clock
from asympo.common.errors import AsympoError, NoProgress
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import CommitRecord, LogStats, PolicyAnnouncement
from asympo.learner.evals import EvalHistory
from asympo.learner.progress import Progress
from asympo.learner.samples import SampleStore
from asympo.learner.settings import LearnerSettings

MAX_HISTORY_ROWS = 20_000


class LearnerState(StrEnum):
    """What the learner is doing."""

    STARTING = "starting"
    WAITING = "waiting"
    TRAINING = "training"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPED = "stopped"
    FINISHED = "finished"


class SaveRefused(AsympoError):
    """There is nothing to save, or nobody left to do it."""


@dataclass(kw_only=True)
class SaveRequest:
    """Asks the training thread for a commit."""

    retain: bool
    is_done: threading.Event = field(default_factory=threading.Event)
    commit: CommitRecord | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerView:
    """What the broker said last, for the status."""

    stats: LogStats | None = None
    generators: tuple[dict[str, Any], ...] = ()
    server: str = ""
    version: str = ""
    warnings: tuple[str, ...] = ()


class LearnerControl:
    """Thread-safe. The training thread writes, the doors read and ask."""

    def __init__(
        self,
        *,
        settings: LearnerSettings,
        stop: StopSignal,
        clock: Clock,
        warnings: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self._warnings = warnings
        self._settings = settings
        self._stop = stop
        self._clock = clock
        self._changed = threading.Condition()
        self._state = LearnerState.STARTING
        self._pause_after: int | None = None
        self._save: SaveRequest | None = None
        self._rows: deque[dict[str, Any]] = deque(maxlen=MAX_HISTORY_ROWS)
        self.samples = SampleStore() if settings.show_samples else None
        """Groups of the steps made; None when they are not shown."""
        self.evals = EvalHistory(
            keep_best=settings.keep_best,
            shows_samples=settings.show_samples,
            best_file=settings.run_directory / "best_policy.json",
        )
        """What evaluators found."""
        self._policy: PolicyAnnouncement | None = None
        self._published_at: float | None = None
        self.broker = BrokerView()
        self.progress = Progress()
        """Where it stands."""
        stop.on_stop(self._wake)

    # --- state -----------------------------------------------------------------------------------------

    @property
    def state(self) -> LearnerState:
        """What it is doing; paused only once the step in progress has ended."""
        return self._state

    def enter(self, state: LearnerState) -> None:
        """The training thread says what it does now."""
        with self._changed:
            self._state = state
            self._changed.notify_all()

    @property
    def is_paused(self) -> bool:
        """Whether the next step is held back."""
        # Read once: whoever resumes may come between.
        after = self._pause_after
        return after is not None and self.progress.step >= after

    @property
    def is_ready(self) -> bool:
        """Whether groups would be trained, are held back on purpose, or none are wanted any more."""
        return self._is_at_work or self._state is LearnerState.FINISHED

    @property
    def _is_at_work(self) -> bool:
        return self._state in (LearnerState.WAITING, LearnerState.TRAINING, LearnerState.PAUSED)

    def pause(self, *, after_step: int = 0) -> None:
        """No step begins once `after_step` has been made; reading and saving stay possible."""
        with self._changed:
            self._pause_after = after_step
            self._changed.notify_all()

    def resume(self) -> None:
        """Steps again."""
        with self._changed:
            self._pause_after = None
            self._changed.notify_all()

    def _wake(self) -> None:
        # From a signal handler, so it must not wait for a lock that the interrupted thread may hold.
        if self._changed.acquire(blocking=False):
            try:
                self._changed.notify_all()
            finally:
                self._changed.release()

    def wait_while_paused(self, timeout_seconds: float) -> None:
        """Blocks the training thread until resumed, asked to save or stopped, for a limited time."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self.is_paused or self._save is not None or self._stop.is_set, timeout_seconds
            )

    # --- saving on request -----------------------------------------------------------------------------

    def save(self, *, retain: bool, timeout_seconds: float) -> CommitRecord:
        """Asks for a commit and waits for it. Raises SaveRefused or NoProgress."""
        with self._changed:
            if not self._is_at_work:
                raise SaveRefused(f"the learner is {self._state}: nothing can be saved now")
            request = self._save or SaveRequest(retain=retain)
            request.retain = request.retain or retain
            self._save = request
            self._changed.notify_all()
        if not request.is_done.wait(timeout_seconds):
            raise NoProgress(f"the state was not saved within {timeout_seconds:g} s")
        if request.commit is None:
            raise SaveRefused("nothing was trained yet, storage failed, or the learner ended: see its log")
        return request.commit

    def take_save_request(self) -> SaveRequest | None:
        """The training thread takes over an open request."""
        with self._changed:
            request, self._save = self._save, None
            return request

    def refuse_saves(self) -> None:
        """The training thread leaves: an open request is answered, and no more are taken."""
        self.enter(LearnerState.DRAINING)
        request = self.take_save_request()
        if request is not None:
            request.is_done.set()

    # --- what was done ---------------------------------------------------------------------------------

    def add_row(self, row: Mapping[str, Any]) -> None:
        """One finished step."""
        with self._changed:
            while self._rows and self._rows[-1]["step"] >= row["step"]:
                self._rows.pop()
            self._rows.append(dict(row))

    def set_policy(self, policy: PolicyAnnouncement) -> None:
        """A policy was announced."""
        with self._changed:
            self._policy = policy
            self._published_at = self._clock.monotonic_seconds()
            self._changed.notify_all()

    @property
    def policy(self) -> PolicyAnnouncement | None:
        """The newest announced policy."""
        return self._policy

    def wait_for_policy(
        self, after: PolicyAnnouncement | None, timeout_seconds: float
    ) -> PolicyAnnouncement | None:
        """The newest policy once it is another than `after`; None when the time passed or all is over."""

        def is_new() -> bool:
            return self._policy is not None and self._policy != after

        with self._changed:
            self._changed.wait_for(lambda: is_new() or self._state is LearnerState.STOPPED, timeout_seconds)
            return self._policy if is_new() else None

    # --- views -----------------------------------------------------------------------------------------

    def history(self, *, after: int) -> list[dict[str, Any]]:
        """Rows of the steps above `after`."""
        with self._changed:
            return [row for row in self._rows if row["step"] > after]

    def status(self) -> dict[str, Any]:
        """Everything at a glance; JSON values."""
        settings, stats = self._settings, self.broker.stats
        with self._changed:
            rows = list(self._rows)[-20:]
            policy, published_at = self._policy, self._published_at
        last = rows[-1] if rows else {}
        busy, waited = (sum(r[k] for r in rows) for k in ("busy_seconds", "wait_seconds"))
        per_step = (busy + waited) / len(rows) if rows else None
        left = None if settings.total_steps is None else max(0, settings.total_steps - self.progress.step)
        now = self._clock.monotonic_seconds()
        return {
            "run": settings.run,
            "state": str(self._state),
            "step": self.progress.step,
            "total_steps": settings.total_steps,
            "paused": self.is_paused,
            "policy_step": None if policy is None else policy.step,
            "fence": self.progress.fence,
            "objective": settings.objective,
            "model": settings.model,
            "sequence": self.progress.sequence,
            "committed_sequence": self.progress.committed_sequence,
            "run_state": None if stats is None else str(stats.state),
            **{
                name: None if stats is None else getattr(stats, name)
                for name in ("backlog", "open", "leases", "capacity", "appended", "trained", "dead_letters")
            },
            "queue_staleness_mean": last.get("queue_staleness_mean"),
            "tokens_per_second": last.get("tokens_per_second"),
            "wait_ratio": waited / (busy + waited) if rows and busy + waited > 0 else None,
            "last_publish_seconds_ago": None if published_at is None else round(now - published_at, 3),
            "eta_seconds": None if left is None or per_step is None else round(left * per_step, 1),
            "show_samples": settings.show_samples,
            "warnings": self._warnings(),
            "generators": list(self.broker.generators),
            "broker": {
                "server": self.broker.server,
                "version": self.broker.version,
                "warnings": list(self.broker.warnings),
            },
        }
