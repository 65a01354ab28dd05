"""How long a learner may take to stop in order; then it ends where it stands, which loses nothing."""

import logging
import os
import threading
from collections.abc import Callable

from asympo.common.lifecycle import StopSignal

log = logging.getLogger(__name__)


class DrainDeadline:
    """Ends the process when it has not closed `seconds` after it was told to stop.

    Whatever it waits for then (the broker, a storage that hangs, a step) is left. To everybody else that is a
    kill: what is not committed does not count, and the next learner goes on from what is.
    """

    def __init__(
        self, *, stop: StopSignal, seconds: float, exit_code: Callable[[], int], standing: Callable[[], str]
    ) -> None:
        """`exit_code` and `standing`, a few words for the log, are asked at the end."""
        self._stop = stop
        self._seconds = seconds
        self._exit_code = exit_code
        self._standing = standing
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="drain-deadline", daemon=True)

    def start(self) -> None:
        """Watches from now on; a thread of its own, since the one that drains is the one that may hang."""
        self._thread.start()

    def close(self) -> None:
        """The process has closed in order."""
        self._is_closed.set()

    def _watch(self) -> None:
        self._stop.wait()
        if self._is_closed.wait(self._seconds):
            return
        log.critical(
            "Not closed %.0f s after %s, %s: ending as it stands",
            self._seconds,
            self._stop.reason,
            self._standing(),
        )
        # Nothing may delay it: not a lock, not an exit handler, not a thread that hangs.
        os._exit(self._exit_code())
