"""The parent's side of the scoring process that has many calls in flight at once."""

import itertools
import threading
from concurrent.futures import Future
from typing import Any

from asympo.rewards.process import WorkerGone, WorkerProcess

GRACE_SECONDS = 2.0
"""The process ends a call itself at its limit; one that does not even do that stands still."""


class ConcurrentWorker:
    """Hands requests to one process and each reply to its caller; thread-safe."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._process = WorkerProcess({**settings, "concurrent": True})
        self._numbers = itertools.count()
        self._asking: dict[int, Future[dict[str, Any]]] = {}
        self._listener: threading.Thread | None = None
        # Held while the process is started or written to, so that lines do not mix.
        self._lock = threading.Lock()

    def start(self) -> None:
        """Raises BadSetting with what the process says against its task."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        self._process.start()
        self._listener = threading.Thread(target=self._listen, name="scoring-replies", daemon=True)
        self._listener.start()

    def ask(self, request: dict[str, Any], *, timeout_seconds: float) -> dict[str, Any]:
        """The reply. Raises TimeoutError when the process stands still, WorkerGone when it died meanwhile.

        A call that takes too long is answered as such by the process itself.
        """
        number = next(self._numbers)
        future = self._asking[number] = Future()
        longest_seconds = timeout_seconds + GRACE_SECONDS
        try:
            with self._lock:
                if not self._process.is_running:
                    self._start()
                self._process.tell(
                    {**request, "id": number, "timeout_seconds": timeout_seconds},
                    timeout_seconds=longest_seconds,
                )
            return future.result(timeout=longest_seconds)
        except BrokenPipeError as error:
            self._wait_for_end()
            raise WorkerGone("it ended while it was asked") from error
        except TimeoutError:
            self._process.kill()
            self._wait_for_end()
            raise
        finally:
            self._asking.pop(number, None)

    def _wait_for_end(self) -> None:
        """Until an ended process is reaped: the next call would write to it once more otherwise."""
        if (listener := self._listener) is not None:
            listener.join(GRACE_SECONDS)

    def _listen(self) -> None:
        """Until the process ends; then everybody who still asks hears of it."""
        while True:
            try:
                reply = self._process.hear(timeout_seconds=None)
            except WorkerGone as gone:
                for number in list(self._asking):
                    if future := self._asking.pop(number, None):
                        future.set_exception(gone)
                return
            if future := self._asking.pop(reply["id"], None):
                future.set_result(reply)

    def close(self) -> None:
        """Kill the process now and never start it again."""
        self._process.close()

    def stop(self) -> None:
        """Returns once it is reaped, which is the listener's to do."""
        if self._listener is not None:
            self._listener.join()
