"""A program of its own session: its log, its signals, its end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from asympo.common.errors import AsympoError
from asympo.common.redaction import redact_text
from asympo.local.log_file import last_sentence

_POLL_SECONDS = 0.02
_LAST_BYTES = 65536
ValueT = TypeVar("ValueT")


def launched(
    command: Sequence[str],
    *,
    cores: Sequence[int] = (),
    outlives_parent: bool = False,
    while_held: Path | None = None,
) -> list[str]:
    """The command behind our launcher, which binds cores and ties its life to ours, or to a lock."""
    options = ["--parent", str(os.getpid())]
    options += ["--cores", ",".join(map(str, cores))] if cores else []
    options += ["--outlive"] if outlives_parent else []
    options += ["--while-held", str(while_held)] if while_held else []
    return [sys.executable, "-m", "asympo.local.launch", *options, "--", *command]


def run_helper(command: Sequence[str], *, seconds: float) -> str:
    """What a short program of ours prints; it ends when we do.

    Raises subprocess.TimeoutExpired, and AsympoError with its last words and exit code where it failed.
    """
    done = subprocess.run(
        launched(command),
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": import_path()},
        timeout=seconds,
    )
    if done.returncode != 0:
        error = AsympoError((done.stderr.strip().splitlines() or ["no output"])[-1].removeprefix("asympo: "))
        error.exit_code = done.returncode
        raise error
    return done.stdout


def kill_group(leader: int) -> None:
    """SIGKILL to a session's leader and to whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def import_path() -> str:
    """PYTHONPATH with which another process runs the same code as this one."""
    root = str(Path(__file__).parents[2])
    others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join(dict.fromkeys([root, *others]))


@dataclass(kw_only=True, eq=False)
class Process:
    """A program, its output appended to a log; can be started again after its end."""

    command: Sequence[str]
    log_path: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """On top of ours."""
    cores: Sequence[int] = ()
    """It is bound to them; empty binds nothing."""
    outlives_parent: bool = False
    """Else it is asked to stop when the thread that started it ends."""
    while_held: Path | None = None
    """A locked file instead: it is asked to stop when no process holds that lock any more."""
    inherits: Sequence[int] = ()
    """Descriptors that it keeps open, such as that of a lock."""
    on_started: Callable[[Self], None] | None = None
    """Hears of every start at once."""
    exit_code: int | None = None
    """Of the last end that was noticed; negative for a signal."""
    _process: subprocess.Popen[bytes] | None = None
    _log_begin: int = 0
    """Where its newest life begins in the log."""

    @property
    def pid(self) -> int | None:
        """None when it is not running."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def is_running(self) -> bool:
        return self.pid is not None

    def start(self, *more: str) -> Self:
        """Starts it, with these arguments after its own."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.exit_code = None
        with self.log_path.open("ab") as output:
            self._log_begin = output.tell()
            self._process = subprocess.Popen(
                launched(
                    [*self.command, *more],
                    cores=self.cores,
                    outlives_parent=self.outlives_parent,
                    while_held=self.while_held,
                ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": import_path(), **self.environment},
                # Ctrl-C in the terminal is for us alone, and a kill has to reach what the process started.
                start_new_session=True,
                pass_fds=self.inherits,
            )
        if self.on_started is not None:
            self.on_started(self)
        return self

    def send(self, number: signal.Signals) -> None:
        """A signal to the process itself, if it still runs."""
        process = self._process
        if process is not None:
            process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        if self._process is not None:
            self._clean_up(self._process.wait(seconds))
        assert self.exit_code is not None, "it was never started"
        return self.exit_code

    def end(self, number: signal.Signals, *, seconds: float = 60.0) -> int:
        """The exit code that a signal brings. Raises subprocess.TimeoutExpired."""
        self.send(number)
        return self.wait(seconds)

    def stop(self, *, deadline_seconds: float) -> bool:
        """Asks the process to end in order and waits; False if it had to be killed."""
        self.send(signal.SIGTERM)
        if self._process is None:
            return True
        try:
            self.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        return True

    def kill(self) -> None:
        """Ends the process and what it started, now."""
        if self._process is not None:
            kill_group(self._process.pid)
            self._clean_up(self._process.wait())

    def kill_at_once(self) -> None:
        """The same without waiting: for signal handlers, and from other threads."""
        process = self._process
        if process is not None:
            kill_group(process.pid)

    def until(self, condition: Callable[[], ValueT], *, seconds: float, what: str = "such state") -> ValueT:
        """The first value of `condition` that counts as true.

        Raises TimeoutError when that takes too long, ChildProcessError when the process ends before.
        """
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if not self.is_running:
                raise ChildProcessError(f"the process ended before {what}{self.last_words()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {what} within {seconds:g} s{self.last_words()}")
            time.sleep(_POLL_SECONDS)
        return value

    @property
    def log(self) -> str:
        """All it said since its first start."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def last_words(self) -> str:
        """What it said last that tells why, as the end of a sentence."""
        said = self.last_sentence()
        return f": {said[:600]} (log: {self.log_path})" if said else ""

    def last_sentence(self) -> str:
        """Of this life of the process; empty when it said nothing."""
        try:
            with self.log_path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                begin = self._log_begin if self._log_begin <= end else 0
                log.seek(max(begin, end - _LAST_BYTES))
                return redact_text(last_sentence(log.read().decode(errors="replace")))
        except OSError:
            # Not there, or on a disk that is gone: then there are no last words.
            return ""

    def _clean_up(self, code: int) -> None:
        # An engine's own worker processes outlive a killed parent and hold its memory and cores.
        self.kill_at_once()
        self.exit_code = code
        self._process = None
