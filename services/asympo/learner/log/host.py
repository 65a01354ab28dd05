"""Measures what the learner stands on: room on its storage, memory and durability of its broker."""

import logging
import os
import shutil
import threading
import time
from pathlib import Path

from asympo.common.errors import AsympoError
from asympo.common.rollout_log import Broker
from asympo.learner.metrics import LearnerMetrics

log = logging.getLogger(__name__)

LOOK_SECONDS = 20.0
_ANSWER_SECONDS = 15.0
"""So long a stop waits for a broker that is being asked."""


class HostWatch:
    """A thread of its own: a storage that hangs must not hold up heartbeat or training."""

    def __init__(self, *, broker: Broker, storage: Path, metrics: LearnerMetrics) -> None:
        self._broker = broker
        self._storage = storage
        self._metrics = metrics
        self._is_ended = threading.Event()
        self._asking = threading.Lock()
        self._thread = threading.Thread(target=self._turn, name="host-watch", daemon=True)

    def start(self) -> None:
        """Looks at once and then every `LOOK_SECONDS`."""
        self._thread.start()

    def stop(self) -> None:
        """Ends: the broker may be closed then. Does not wait for a storage that hangs."""
        self._is_ended.set()
        if self._asking.acquire(timeout=_ANSWER_SECONDS):
            self._asking.release()

    def _turn(self) -> None:
        while True:
            self._look()
            if self._is_ended.wait(LOOK_SECONDS):
                return

    def _look(self) -> None:
        # The broker first: a storage that hangs must not make it look away.
        with self._asking:
            if not self._is_ended.is_set():
                self._ask_broker()
        try:
            disk = shutil.disk_usage(_existing(self._storage))
        except OSError as error:
            log.warning("The storage at %s cannot be measured: %s", self._storage, error)
        else:
            self._metrics.storage_seen(free_bytes=disk.free, total_bytes=disk.total)

    def _ask_broker(self) -> None:
        try:
            asked_at = time.monotonic()
            info = self._broker.info()
        except AsympoError as error:
            log.debug("The broker does not describe itself: %s", error)
            self._metrics.broker_lost()
        else:
            self._metrics.broker_seen(
                seconds=time.monotonic() - asked_at,
                used_bytes=info.used_memory_bytes,
                max_bytes=info.maxmemory_bytes,
                is_durable=info.is_durable,
            )


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there already."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path
