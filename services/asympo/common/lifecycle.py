"""How a process stops: the first signal sets a flag, a second one forces; a closed terminal only asks."""

import asyncio
import functools
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import FrameType, TracebackType
from typing import Any, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SUPERVISED = "ASYMPO_SUPERVISED"
"""Environment variable of a service whose supervisor forces with SIGKILL: signals only ask it to stop. When
a session ends they come from several sides at once, and two of them must not cost what a drain saves."""


class StopSignal:
    """A flag that the first SIGTERM, SIGINT or SIGHUP sets; a second SIGTERM or SIGINT exits at once.

    The exit code is then 128 + the signal. SIGHUP never forces, and where it was ignored (nohup) it stays so.

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
        same_within_seconds: float = 0.0,
    ) -> None:
        """`on_force` runs in the signal handler before a forced exit: no locks, nothing that waits.

        A SIGTERM this soon after the one before is the same one: `timeout` and session managers send it to
        the process and to its group.
        """
        self._signals = signals
        self._on_force = on_force
        self._same_within_seconds = same_within_seconds
        self._num_asked, self._asked_at = 0, -float("inf")
        self._is_supervised = bool(os.environ.get(SUPERVISED))
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
        if self._is_forced_by(number):
            # Nothing that still runs may delay a forced exit: not atexit, not a lock, not a thread.
            try:
                if self._on_force is not None:
                    self._on_force()
            finally:
                os._exit(128 + number)
        self.set(signal.Signals(number).name)

    def _is_forced_by(self, number: int) -> bool:
        if number == signal.SIGHUP:
            return False
        now = time.monotonic()
        if number == signal.SIGTERM and now - self._asked_at < self._same_within_seconds:
            return False
        self._num_asked, self._asked_at = self._num_asked + 1, now
        return self._event.is_set() and self._num_asked > 1 and not self._is_supervised

    def __enter__(self) -> Self:
        for number in self._signals:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()


class DaemonThreads(Executor):
    """Threads that end with their process: no call that hangs keeps it, as the standard library's would."""

    def __init__(self, max_threads: int) -> None:
        self._max_threads, self._num_threads = max_threads, 0
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._is_closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Runs it as soon as a thread is free."""
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("no more calls: the process ends")
            self._waiting.put((future, functools.partial(fn, *args, **kwargs)))
            if not self._idle.acquire(blocking=False) and self._num_threads < self._max_threads:
                self._num_threads += 1
                threading.Thread(target=self._work, name="asympo-call", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes nothing more, and forgets what no thread has begun; never waits."""
        with self._lock:
            self._is_closed = True
            while not self._waiting.empty():
                if (item := self._waiting.get()) is not None:
                    item[0].cancel()
            for _ in range(self._num_threads):
                self._waiting.put(None)

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001  it is the caller's
                    future.set_exception(error)
            # Nothing of a call is kept while its thread waits for the next one.
            del item, future, call
            self._idle.release()
