"""A generator on the GPU of its machine's learner: the engine sleeps while the learner computes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from asympo.engines.base import Engine
from asympo.local.gpu_lock import POLL_SECONDS, GpuLock


class GpuShare:
    """Decides when the engine is awake; without a lock it always is."""

    def __init__(self, path: Path | None, *, engine: Engine) -> None:
        """`path`: of the lock. Raises BadSetting."""
        self._lock = None if path is None else GpuLock(path)
        self._engine = engine
        self._use = asyncio.Lock()

    async def wait(self) -> None:
        """Returns once the GPU may be used; before the engine starts."""
        if self._lock is None:
            return
        while not self._lock.try_share():
            await asyncio.sleep(POLL_SECONDS)

    @asynccontextmanager
    async def awake(self) -> AsyncIterator[bool]:
        """The engine does not go to sleep inside: a learner that wants the GPU waits.

        Gives whether it was asleep before.
        """
        was_asleep = self._use.locked()
        async with self._use:
            yield was_asleep

    async def run(self) -> None:
        """Sleeps whenever the learner wants the GPU, for ever. Raises EngineBroken."""
        if self._lock is None:
            await asyncio.Event().wait()
            return
        while True:
            while not self._lock.is_wanted():
                await asyncio.sleep(POLL_SECONDS)
            async with self._use, self._engine.asleep():
                self._lock.unshare()
                await self.wait()
