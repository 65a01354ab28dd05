"""Requests outside the log, through the door or over gRPC, counted so that a drain can wait for them."""

import asyncio
import contextlib
from collections.abc import Iterator


class OutsideRequests:
    """Those that are being answered. Belongs to one event loop."""

    def __init__(self) -> None:
        self._num_open = 0
        self._settled = asyncio.Event()
        self._settled.set()
        self.is_closed = False
        """No more are taken: the generator is draining."""

    def __len__(self) -> int:
        return self._num_open

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """While one is answered."""
        self._num_open += 1
        self._settled.clear()
        try:
            yield
        finally:
            self._num_open -= 1
            if self._num_open == 0:
                self._settled.set()

    async def drain(self, *, deadline_seconds: float) -> None:
        """Take no more, and wait until all are answered or the time is over."""
        self.is_closed = True
        if deadline_seconds <= 0:
            # For a call as well that still waits with more time.
            self._settled.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                await self._settled.wait()
