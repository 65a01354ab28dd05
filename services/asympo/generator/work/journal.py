"""The appends that the broker acknowledged to this generator: its own record, for an auditor."""

import fcntl
import hashlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.common.jsonl import JsonlWriter
from asympo.common.rollout_log import AppendResult, Lease

log = logging.getLogger(__name__)


class AppendJournal:
    """One JSON line for each append that the broker acknowledged, on storage before the next group is taken.

    An append whose answer a kill cut off is in the log and not here, never the other way round. Thread-safe;
    one process a file.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path` for appending; raises BadSetting when that cannot be, or another process has it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Before the writer, which cuts off a torn last line: that of a living process is not torn.
            self._held = path.open("ab")
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._writer = JsonlWriter(path)
        except BlockingIOError as error:
            self._held.close()
            raise BadSetting(
                f"append_journal {path} belongs to a running generator: give each generator its own"
            ) from error
        except OSError as error:
            raise BadSetting(f"append_journal {path} cannot be written: {error.strerror}") from error
        self._lock = threading.Lock()
        self._unwritten: list[dict[str, Any]] = []

    def record(self, lease: Lease, payload: bytes, result: AppendResult, *, producer: str) -> None:
        """Notes one acknowledged append. Raises OSError; the row is then written with the next one."""
        with self._lock:
            self._unwritten.append(
                {
                    "group_id": lease.group_id,
                    "sequence": result.sequence,
                    "outcome": result.outcome.value,
                    "payload_sha256": hashlib.sha256(payload).hexdigest(),
                    "producer": producer,
                    "at_seconds": time.time(),
                }
            )
            while self._unwritten:
                self._writer.append(self._unwritten[0])
                del self._unwritten[0]

    def close(self) -> None:
        """Ends; lets another process have the file."""
        with self._lock:
            self._writer.close()
            self._held.close()
