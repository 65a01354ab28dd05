"""How a process stops: the first signal sets a flag, a second one forces."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """A flag that the first SIGTERM or SIGINT sets; the second exits at once with 128 + the signal.

    Use it as a context manager in the main thread, and give it to whatever has to stop:

        with StopSignal() as stop:
            while not stop.is_set:
                step()
                stop.wait(1.0)
    """

    def __init__(
        self,
        *,
        signals: tuple[signal.Signals, ...] = STOP_SIGNALS,
        on_force: Callable[[], None] | None = None,
    ) -> None:
        """`on_force` runs in the signal handler before a forced exit: no locks, nothing that waits."""
        self._signals = signals
        self._on_force = on_force
        self._event = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._previous: dict[signal.Signals, object] = {}
        self.reason = ""
        """Why the process stops: the signal's name, or what was given to `set`."""

    @property
    def is_set(self) -> bool:
        return self._event.is_set()

    def set(self, reason: str) -> None:
        """Asks to stop, from any thread; only the first reason is kept."""
        if not self._event.is_set():
            self.reason = reason
            self._event.set()
            for callback in list(self._callbacks):
                callback()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Blocks until the flag is set or the time is over; says whether it is set."""
        return self._event.wait(timeout_seconds)

    def on_stop(self, callback: Callable[[], None]) -> None:
        """Calls back once when the flag is set: at once if it already is; must not block."""
        self._callbacks.append(callback)
        if self._event.is_set():
            callback()

    async def wait_async(self) -> None:
        """The same for a coroutine, without a thread of its own."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(stopped.set)

        self.on_stop(wake)
        try:
            await stopped.wait()
        finally:
            self._callbacks.remove(wake)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            # Nothing that still runs may delay a forced exit: not atexit, not a lock, not a thread.
            try:
                if self._on_force is not None:
                    self._on_force()
            finally:
                os._exit(128 + number)
        self.set(signal.Signals(number).name)

    def __enter__(self) -> Self:
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()
