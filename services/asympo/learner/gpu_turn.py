"""The learner's turns on a GPU that it shares with generators of its machine."""

import logging
import os
from pathlib import Path

from asympo.common.clock import Clock
from asympo.local.gpu_lock import POLL_SECONDS, GpuLock

log = logging.getLogger(__name__)

_SAY_SECONDS = 60.0
_FREE_SECONDS = 10.0
"""The engine of a generator that was killed ends a little later, and only then is its memory free."""
_SLACK_BYTES = 1 << 28


class GpuTurn:
    """Waits until the generators are asleep, and lets them wake up afterwards."""

    def __init__(self, path: Path | None, *, clock: Clock) -> None:
        """`path`: of the lock; without one it is always the learner's turn. Raises BadSetting."""
        self._lock = None if path is None else GpuLock(path)
        self._clock = clock
        self._asked_at: float | None = None
        self._said_at = 0.0
        self._owned_at: float | None = None
        self._has_turn = False
        self._left_free: int | None = None
        """Bytes that were free when the turn before ended, with all engines still asleep."""
        if path is not None:
            # Momenta that lie in a large segment would keep all of it from being given back.
            os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

    def take(self, *, within_seconds: float) -> bool:
        """Whether the GPU is the learner's alone by then; if not, it goes on wanting it until `give_back`."""
        if self._lock is None:
            return True
        begun = now = self._clock.monotonic_seconds()
        if self._asked_at is None:
            self._asked_at = self._said_at = begun
        while not (self._lock.try_own() and self._is_memory_free(now)):
            if now - begun >= within_seconds:
                self._say(now)
                return False
            self._clock.sleep(POLL_SECONDS)
            now = self._clock.monotonic_seconds()
        self._asked_at, self._has_turn = None, True
        return True

    def give_back(self, *, is_measured: bool = True) -> None:
        """Ends the turn, or the wish for one, and frees what torch keeps of the memory for later.

        `is_measured`: the next turn begins once as much is free as now.
        """
        if self._lock is None:
            return
        try:
            free = _free_bytes()
            if self._has_turn and is_measured:
                self._left_free = free
        finally:
            self._asked_at = self._owned_at = None
            self._has_turn = False
            self._lock.disown()

    def _is_memory_free(self, now: float) -> bool:
        if self._owned_at is None:
            self._owned_at = now
        if self._left_free is None or now - self._owned_at >= _FREE_SECONDS:
            return True
        free = _free_bytes()
        if free is None or free >= self._left_free - _SLACK_BYTES:
            return True
        if now == self._owned_at:
            log.info(
                "Waiting up to %.0f s for %.1f GiB of the GPU, which an engine that ended may still hold",
                *(_FREE_SECONDS, (self._left_free - free) / (1 << 30)),
            )
        return False

    def _say(self, now: float) -> None:
        if self._asked_at is not None and now - self._said_at >= _SAY_SECONDS:
            self._said_at = now
            log.warning(
                "Waiting for the GPU for %.0f s: a generator has not gone to sleep yet, or is starting",
                now - self._asked_at,
            )


def _free_bytes() -> int | None:
    """Of the GPU, once torch keeps nothing for later; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]
