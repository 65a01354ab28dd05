"""One supervised process: its log, its restarts, its end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from asympo.common.errors import BadSetting, BrokerRefused, Fenced, SequenceGap
from asympo.run.machine import Share

FINAL_EXIT_CODES = frozenset(
    {0, BadSetting.exit_code, BrokerRefused.exit_code, SequenceGap.exit_code, Fenced.exit_code}
)
"""Codes after which starting again cannot help."""


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When a process that ended is started again."""

    max_restarts: int = 6
    """Within `window_seconds`; one more end is given up on."""
    window_seconds: float = 600.0
    max_quick_failures: int = 3
    """In a row, by itself, each within `quick_seconds` of its start: such a program will not get better."""
    quick_seconds: float = 20.0
    first_wait_seconds: float = 1.0
    """Doubled with each restart within the window."""
    max_wait_seconds: float = 30.0


@dataclass(kw_only=True)
class Service:
    """A program, kept running as long as that makes sense."""

    name: str
    command: Sequence[str]
    log_path: Path
    share: Share | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    """On top of the share's and ours."""
    restart_arguments: Sequence[str] = ()
    """Added to the command when it is started again."""
    outlives_supervisor: bool = False
    policy: RestartPolicy = field(default_factory=RestartPolicy)

    num_restarts: int = 0
    exit_code: int | None = None
    """Of the last end; negative for a signal."""
    _process: subprocess.Popen[bytes] | None = None
    _log: IO[bytes] | None = None
    _starts: deque[float] = field(default_factory=deque)
    _restart_at: float | None = None
    _num_quick_failures: int = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def is_running(self) -> bool:
        return self.pid is not None

    @property
    def is_waiting(self) -> bool:
        """It ended and will be started again."""
        return self._restart_at is not None

    @property
    def has_ended(self) -> bool:
        """It ran, and will not run again."""
        return self.exit_code is not None and self._process is None and not self.is_waiting

    def start(self) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self.log_path.open("ab")
        environment = {**os.environ, **(self.share.environment if self.share else {}), **self.environment}
        launcher = [sys.executable, "-m", "asympo.run.launch"]
        if self.share and self.share.cores:
            launcher += ["--cores", ",".join(str(core) for core in self.share.cores)]
        if self.outlives_supervisor:
            launcher += ["--outlive"]
        again = [*self.restart_arguments] if self._starts else []
        self._starts.append(time.monotonic())
        self._restart_at = self.exit_code = None
        self._process = subprocess.Popen(
            [*launcher, "--", *self.command, *again],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            # Ctrl-C in the terminal is for the supervisor alone, which stops services in order.
            start_new_session=True,
        )

    def check(self) -> str | None:
        """Looks after the process; a sentence when something happened that a person should hear of."""
        now = time.monotonic()
        if self._restart_at is not None and now >= self._restart_at:
            self.num_restarts += 1
            self.start()
            return f"{self.name} started again (restart {self.num_restarts})"
        if self._process is None or self._restart_at is not None:
            return None
        code = self._process.poll()
        if code is None:
            return None
        self._clean_up(code)
        if code in FINAL_EXIT_CODES:
            return None if code == 0 else f"{self.name} ended with exit code {code}{self.last_words()}"
        return self._plan_restart(code, now)

    def _plan_restart(self, code: int, now: float) -> str:
        why = _reason(code)
        while self._starts and self._starts[0] < now - self.policy.window_seconds:
            self._starts.popleft()
        recent = len(self._starts)
        if recent > self.policy.max_restarts:
            minutes = self.policy.window_seconds / 60
            return (
                f"{self.name} {why}; given up after {recent} starts in {minutes:g} minutes{self.last_words()}"
            )
        wait = min(self.policy.first_wait_seconds * 2 ** max(0, recent - 1), self.policy.max_wait_seconds)
        self._restart_at = now + wait
        return f"{self.name} {why}; starting it again in {wait:g} s"

    def ask_to_stop(self) -> None:
        """Sends SIGTERM and does not wait; `stop` does."""
        self._restart_at = None
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, *, deadline_seconds: float) -> bool:
        """Asks the process to end in order and waits; False if it had to be killed."""
        self.ask_to_stop()
        if self._process is None:
            return True
        try:
            code = self._process.wait(timeout=deadline_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        self._clean_up(code)
        return True

    def kill(self) -> None:
        """Ends the process and what it started, now."""
        self._restart_at = None
        if self._process is not None:
            self._kill_group()
            self._clean_up(self._process.wait())

    def kill_at_once(self) -> None:
        """The same without waiting: for signal handlers."""
        self._kill_group()

    def last_words(self) -> str:
        """The last line of its log, as the end of a sentence."""
        try:
            lines = self.log_path.read_bytes()[-8192:].decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return f": {lines[-1][:400]} (log: {self.log_path})" if lines else ""

    def _clean_up(self, code: int) -> None:
        # An engine's own worker processes outlive a killed parent and hold its memory and cores.
        self._kill_group()
        self.exit_code = code
        self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def _kill_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _reason(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
