"""Blocking calls (broker, storage, scorer) made from the event loop through threads."""

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from asympo.common.errors import BrokerUnavailable
from asympo.common.lifecycle import DaemonThreads

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

MIN_BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 5.0


class Backoff:
    """Growing, jittered waits between attempts."""

    def __init__(self, *, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._ceiling_seconds = MIN_BACKOFF_SECONDS

    def next_seconds(self) -> float:
        """How long to wait before the next attempt."""
        wait_seconds = self._rng.uniform(0.5, 1.0) * self._ceiling_seconds
        self._ceiling_seconds = min(2 * self._ceiling_seconds, MAX_BACKOFF_SECONDS)
        return wait_seconds


class Calls:
    """Runs blocking functions in threads, so that no broker or disk can stop the loop."""

    def __init__(self, *, max_threads: int, on_broker_error: Callable[[], None]) -> None:
        self._threads, self._waiting = DaemonThreads(max_threads), DaemonThreads(max_threads)
        self._on_broker_error = on_broker_error

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of one call; its errors are the caller's."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(function, *args, **kwargs))

    async def wait(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a call that waits for something to happen: it keeps no other kind of call waiting."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._waiting, functools.partial(function, *args, **kwargs))

    async def until_answered(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a broker call, however long the broker is away; cancel it to give up.

        Only for calls that may be repeated: the log's scripts are idempotent.
        """
        backoff = Backoff()
        while True:
            try:
                return await self.run(function, *args, **kwargs)
            except BrokerUnavailable as error:
                self._on_broker_error()
                wait_seconds = backoff.next_seconds()
                log.warning("The broker did not answer, trying again in %.1f s: %s", wait_seconds, error)
                await asyncio.sleep(wait_seconds)

    def close(self) -> None:
        """Take no more calls; those that run end by their own time-outs, or with the process."""
        self._threads.shutdown()
        self._waiting.shutdown()


async def race(*works: Coroutine[Any, Any, None]) -> None:
    """Run all until the first one ends, then cancel and await the others. Raises what the first raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if task in done:
            task.result()
