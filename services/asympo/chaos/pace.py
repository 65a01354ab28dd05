"""Keeps the run from finishing before the faults have: leases are handed out no faster than faults happen."""

import asyncio
import contextlib

from asympo.chaos.resp import Request

GROUPS_PER_FAULT = 6
HEAD_START_GROUPS = 24
_SLOWEST_SECONDS = 2.0
"""Below the clients' time-out: a request for a lease is held back, never refused."""


class Pace:
    """Holds requests for leases while the run is ahead of the schedule. One for all generators."""

    def __init__(self, *, num_faults: int) -> None:
        self._num_faults = num_faults
        self._num_granted = 0
        self._num_done = 0
        self._changed = asyncio.Event()

    def fault_done(self) -> None:
        """One more fault lies behind."""
        self._num_done += 1
        self._changed.set()
        self._changed = asyncio.Event()

    @property
    def is_ahead(self) -> bool:
        is_over = self._num_done >= self._num_faults
        return not is_over and self._num_granted > HEAD_START_GROUPS + GROUPS_PER_FAULT * (self._num_done + 1)

    async def admit(self, request: Request) -> None:
        """Lets a request through at once, or after a while when the run is ahead."""
        if request.script != "acquire":
            return
        if self.is_ahead:
            changed = self._changed
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SLOWEST_SECONDS):
                    await changed.wait()

    def granted(self) -> None:
        """One more lease is out."""
        self._num_granted += 1


def num_prompts_for(num_faults: int) -> int:
    """Enough for a slow start beside other work, the faults, their waits and a quiet end."""
    return 4 * HEAD_START_GROUPS + (GROUPS_PER_FAULT + 4) * num_faults
