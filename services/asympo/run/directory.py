"""The directory of one run on this machine: who works in it, whether it may be deleted."""

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from asympo.common.errors import BadSetting
from asympo.common.jsonl import read_steps
from asympo.local.broker import answers, broker_url
from asympo.local.whole_file import write_whole

_MARK = "run.json"
_LOCK = "supervisor.lock"
_STOPPING_SECONDS = 300.0
"""How long the services of a supervisor that was killed may take to end."""
_POLL_SECONDS = 0.2


class RunDirectory:
    """`runs/<run>`: settings, logs, broker data, checkpoints, results. Held by one supervisor at a time."""

    def __init__(
        self, path: Path, *, say: Callable[[str], None] = lambda text: None, is_marked: bool = True
    ) -> None:
        """`say` hears why entering takes a while; `is_marked`: entering a new one notes it as a run."""
        self._say, self._is_marked = say, is_marked
        self.path = path.absolute()
        self._lock: int | None = None

    @property
    def exists(self) -> bool:
        """Also one whose first supervisor got no further than its lock."""
        return (self.path / _MARK).is_file() or self.lock_path.is_file()

    @property
    def live_broker_url(self) -> str | None:
        """Where its own broker answers; None when it has none, or that is down."""
        data = self.path / "broker"
        # Who holds the directory noted it: it may be a port, or the socket that another environment chooses.
        noted = self.read_mark().get("broker_url") if self.is_held else None
        url = str(noted or broker_url(data))
        return url if data.is_dir() and answers(url) else None

    def read_mark(self) -> dict[str, Any]:
        """What earlier supervisors noted; empty for a new run."""
        try:
            mark = json.loads((self.path / _MARK).read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise BadSetting(
                f"{self.path / _MARK} cannot be read ({error}), as after a power cut: move it away and start "
                "the run again; only what it noted about earlier starts is lost"
            ) from None
        return mark if isinstance(mark, dict) else {}

    @property
    def step(self) -> int:
        """Of its newest weights, as the learner wrote it down; what was noted where it wrote nothing."""
        rows = read_steps(self.path / "metrics.jsonl")
        return int(rows[-1]["step"] if rows else self.read_mark().get("step", 0))

    def write_mark(self, **values: Any) -> None:
        """Adds to what is noted, atomically."""
        mark = {"run": self.path.name, "created_at_seconds": time.time(), **self.read_mark(), **values}
        write_whole(self.path / _MARK, json.dumps(mark, indent=2) + "\n")

    def delete(self) -> None:
        """Removes the run's files; refuses anything that is not a run's directory."""
        self._remove_leftovers()
        if not self.path.exists():
            return
        if self.path.is_symlink() or not self.exists:
            raise BadSetting(f"{self.path} is not the directory of a run: --fresh deletes nothing else")
        with self:
            # At once: whoever is interrupted meanwhile must not leave half a run.
            aside = self.path.with_name(f"{self._aside}{secrets.token_hex(8)}")
            self.path.rename(aside)
            shutil.rmtree(aside)

    @property
    def _aside(self) -> str:
        """How the names begin under which it is deleted; no run is called that."""
        return f".deleted.{self.path.name}."

    def _remove_leftovers(self) -> None:
        """Of deletions that were interrupted."""
        for path in self.path.parent.iterdir() if self.path.parent.is_dir() else ():
            if path.name.startswith(self._aside) and len(path.name) == len(self._aside) + 16:
                shutil.rmtree(path, ignore_errors=True)

    def __enter__(self) -> Self:
        """Holds the directory; BadSetting names the process that already does."""
        if self.path.exists() and any(self.path.iterdir()) and not self.exists:
            raise BadSetting(
                f"{self.path} holds other files, but no run: choose another run name or directory"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise BadSetting(
                f"{self.path} cannot be written (permissions, or a read-only disk): repair that, or give "
                "another run.directory"
            )
        self._lock = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline, is_said = time.monotonic() + _STOPPING_SECONDS, False
        while not _is_locked(self._lock):
            owner = self.holder
            if _is_running(owner) or time.monotonic() > deadline:
                os.close(self._lock)
                self._lock = None
                raise BadSetting(
                    f"the run in {self.path} is already running (process {owner or 'unknown'}): stop it, or "
                    "choose another run name"
                )
            if not is_said:
                self._say(f"process {owner} was killed and its services are still stopping: waiting for them")
                is_said = True
            time.sleep(_POLL_SECONDS)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        self._remove_leftovers()
        if self._is_marked and not (self.path / _MARK).exists():
            self.write_mark(started_in=os.getcwd())
        return self

    @property
    def is_held(self) -> bool:
        """Whether somebody works in it now, or still cleans up after a supervisor that was killed.

        BadSetting where that cannot be told.
        """
        try:
            # Whoever only asks may be another user, or have the disk read-only.
            descriptor = os.open(self.lock_path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise BadSetting(
                f"whether somebody works in {self.path} cannot be told: {self.lock_path} cannot be read "
                f"({error.strerror}); ask as the user who runs it"
            ) from None
        try:
            return not _is_locked(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    @property
    def holder(self) -> str:
        """Number of the process that holds it, or did so last; empty when nobody ever did."""
        return self.lock_path.read_text(errors="replace").strip() if self.lock_path.exists() else ""

    @property
    def lock_path(self) -> Path:
        return self.path / _LOCK

    @property
    def lock(self) -> int | None:
        """Descriptor that holds the directory for as long as any process has it open."""
        return self._lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _is_locked(descriptor: int, how: int = fcntl.LOCK_EX) -> bool:
    """Whether the lock is this descriptor's now. A shared one needs no right to write, on NFS either."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_running(owner: str) -> bool:
    try:
        return psutil.Process(int(owner)).status() != psutil.STATUS_ZOMBIE
    except (ValueError, psutil.NoSuchProcess):
        return False
