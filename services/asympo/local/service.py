"""A process that is started again as long as that makes sense."""

import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from asympo.common.errors import BadSetting, BrokerRefused, Fenced, SequenceGap
from asympo.local.process import Process

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
    first_wait_seconds: float = 1.0
    """Doubled with each restart within the window."""
    max_wait_seconds: float = 30.0


@dataclass(kw_only=True, eq=False)
class Service(Process):
    """A program, kept running as long as that makes sense."""

    name: str
    restart_arguments: Sequence[str] = ()
    """Added to the command when it is started again."""
    policy: RestartPolicy = field(default_factory=RestartPolicy)

    num_restarts: int = 0
    _starts: deque[float] = field(default_factory=deque)
    _restart_at: float | None = None

    @property
    def is_waiting(self) -> bool:
        """It ended and will be started again."""
        return self._restart_at is not None

    @property
    def has_ended(self) -> bool:
        """It ran, and will not run again."""
        return self.exit_code is not None and self._process is None and not self.is_waiting

    def start(self, *more: str) -> Self:
        """Starts it; from the second time on with `restart_arguments`."""
        again = [*self.restart_arguments] if self._starts else []
        self._starts.append(time.monotonic())
        self._restart_at = None
        return super().start(*more, *again)

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
        self.send(signal.SIGTERM)

    def stop(self, *, deadline_seconds: float) -> bool:
        """Asks the process to end in order and waits; False if it had to be killed."""
        self._restart_at = None
        return super().stop(deadline_seconds=deadline_seconds)

    def kill(self) -> None:
        """Ends the process and what it started, now."""
        self._restart_at = None
        super().kill()


def _reason(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
