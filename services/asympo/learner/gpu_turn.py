"""The learner's turns on a GPU that it shares with generators of its machine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asympo.common.clock import Clock
from asympo.local.gpu_lock import POLL_SECONDS, GpuLock

log = logging.getLogger(__name__)

_SAY_SECONDS = 60.0


class GpuTurn:
    """Waits until the generators are asleep, and lets them wake up afterwards."""

    def __init__(self, path: Path | None, *, clock: Clock) -> None:
        """`path`: of the lock; without one it is always the learner's turn. Raises BadSetting."""
        self._lock = None if path is None else GpuLock(path)
        self._clock = clock

    @contextmanager
    def held(self) -> Iterator[float]:
        """The GPU is the learner's alone inside; gives the seconds that it waited for that."""
        if self._lock is None:
            yield 0.0
            return
        waited = self._wait(self._lock)
        try:
            yield waited
        finally:
            _give_memory_back()
            self._lock.disown()

    def _wait(self, lock: GpuLock) -> float:
        begun = said = self._clock.monotonic_seconds()
        while not lock.try_own():
            self._clock.sleep(POLL_SECONDS)
            now = self._clock.monotonic_seconds()
            if now - said >= _SAY_SECONDS:
                said = now
                log.warning(
                    "Waiting for the GPU for %.0f s: a generator has not gone to sleep yet, or is starting",
                    now - begun,
                )
        return self._clock.monotonic_seconds() - begun


def _give_memory_back() -> None:
    """What torch keeps of the GPU's memory for later, for generators to use now."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
