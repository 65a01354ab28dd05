"""Keeps the fence alive and the status fresh, beside the training thread."""

import logging
import threading
from collections.abc import Callable

from asympo.common.clock import Clock
from asympo.common.errors import AsympoError, BrokerChanged, Fenced
from asympo.common.rollout_log import Fence, RunLog
from asympo.learner.control import BrokerView, LearnerControl, LearnerState
from asympo.learner.metrics import LearnerMetrics

log = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0
STALLED_SECONDS = 120.0
"""A heartbeat that has not turned for so long is dead: longer than the broker client's own retries."""


class Heartbeat:
    """A thread that beats every third of the heartbeat and looks at the run every second, or as often."""

    def __init__(
        self,
        *,
        run_log: RunLog,
        learner: LearnerControl,
        metrics: LearnerMetrics,
        clock: Clock,
        on_lost: Callable[[Exception], None],
    ) -> None:
        """`on_lost`: told why no more beats will follow, from the thread."""
        self._run_log = run_log
        self._learner = learner
        self._metrics = metrics
        self._clock = clock
        self._on_lost = on_lost
        self._fence: Callable[[], Fence] | None = None
        self._heard: Callable[..., None] | None = None
        self._is_ended = threading.Event()
        self._thread = threading.Thread(target=self._turn, name="heartbeat", daemon=True)
        self._turned_at: float | None = None

    def start(self) -> None:
        """Watches from now on; beats once there is a fence."""
        self._turned_at = self._clock.monotonic_seconds()
        self._thread.start()

    def beat_for(self, fence: Callable[[], Fence], *, heard: Callable[..., None] | None = None) -> None:
        """Keeps this fence, asked for again at each beat, since a reconcile may replace it.

        `heard`: told with `has_changed` that the broker answered, and whether it has lost something.
        """
        self._heard = heard
        self._fence = fence

    def stop(self) -> None:
        """Ends; the fence then lives until its heartbeat expires or it is released."""
        self._is_ended.set()
        if self._thread.is_alive():
            self._thread.join(15.0)

    def release(self) -> None:
        """Ends and gives the fence up, so that the next learner need not wait for it to expire."""
        # Nothing must beat for a fence that was given up.
        self.stop()
        if self._fence is None:
            return
        try:
            self._run_log.fence.release(self._fence())
        except AsympoError as error:
            log.warning("The fence is left to expire: %s", error)

    @property
    def not_alive_reason(self) -> str:
        """Empty while the thread turns, and before it does: loading data may take any time."""
        if self._turned_at is None:
            return ""
        silent = self._clock.monotonic_seconds() - self._turned_at
        return f"no heartbeat for {silent:.0f} s" if silent > STALLED_SECONDS else ""

    def _turn(self) -> None:
        beat_at = 0.0
        fence: Fence | None = None
        while not self._is_ended.wait(turn_seconds(fence)):
            now = self._turned_at = self._clock.monotonic_seconds()
            fence = self._fence() if self._fence is not None else None
            try:
                if fence is not None and now >= beat_at:
                    self._beat(fence)
                    beat_at = now + fence.heartbeat_seconds / 3
                self._look(0 if fence is None else fence.number)
            except Fenced as error:
                self._on_lost(error)
                return
            except AsympoError as error:
                # A password that is wrong now is read again at the next connect.
                log.warning("No heartbeat: %s", error)
            except Exception as error:  # noqa: BLE001  the learner ends with it
                # Nobody must train on with a fence that lapses unnoticed.
                self._on_lost(error)
                return

    def _beat(self, fence: Fence) -> None:
        has_changed = True
        try:
            self._run_log.fence.heartbeat(fence, trained_sequence=self._learner.progress.sequence)
            has_changed = False
        except BrokerChanged:
            log.debug("The broker changed; the training thread reconciles")
        if self._heard is not None:
            self._heard(has_changed=has_changed)

    def _look(self, fence_number: int) -> None:
        stats = self._run_log.stats.read()
        self._learner.evals.look(self._run_log)
        view = self._learner.broker
        self._learner.broker = BrokerView(
            stats=stats,
            generators=tuple(self._run_log.presence.generators()),
            server=view.server,
            version=view.version,
            warnings=view.warnings,
        )
        self._metrics.unreadable(self._run_log.access.unreadable)
        self._metrics.watched(
            stats,
            fence=fence_number,
            is_paused=self._learner.is_paused,
            is_finished=self._learner.state is LearnerState.FINISHED,
        )


def turn_seconds(fence: Fence | None) -> float:
    """From one turn to the next: short enough for a beat in every third of the heartbeat."""
    return _WATCH_SECONDS if fence is None else min(_WATCH_SECONDS, fence.heartbeat_seconds / 3)
