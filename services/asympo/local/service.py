"""A process that is started again as long as that makes sense."""

import re
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from asympo.common.errors import (
    BadSetting,
    BrokerRefused,
    BrokerUnavailable,
    Fenced,
    SequenceGap,
    StorageUnavailable,
)
from asympo.local.out_of_memory import num_oom_kills
from asympo.local.process import Process

FINAL_EXIT_CODES = frozenset(
    {0, BadSetting.exit_code, BrokerRefused.exit_code, SequenceGap.exit_code, Fenced.exit_code}
)
"""Codes after which starting again cannot help."""
OUTSIDE_EXIT_CODES = frozenset({BrokerUnavailable.exit_code, StorageUnavailable.exit_code})
"""Codes of causes that may pass without anybody touching this machine."""
_CRASHES = frozenset({"SIGILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSYS"})
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When a process that ended is started again."""

    max_restarts: int = 6
    """Within `window_seconds`; one more end is given up on."""
    window_seconds: float = 600.0
    first_wait_seconds: float = 1.0
    """Doubled with each restart within the window."""
    max_wait_seconds: float = 30.0
    max_same_ends: int = 3
    """So many ends in a row for the same reason, with nothing achieved between, and the cause will stay."""
    long_life_seconds: float = 3600.0
    """Whatever lived this long achieved something: its end is the first of its reason."""


@dataclass(kw_only=True, eq=False)
class Service(Process):
    """A program, kept running as long as that makes sense."""

    name: str
    restart_arguments: Sequence[str] = ()
    """Added to the command when it is started again."""
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    final_exit_codes: frozenset[int] = FINAL_EXIT_CODES
    """It is not started again after these."""

    num_restarts: int = 0
    _starts: deque[float] = field(default_factory=deque)
    """Within the policy's window."""
    _started_at: float | None = None
    _restart_at: float | None = None
    _same_ends: int = 0
    _last_cause: str = ""
    _oom_kills_before: int = 0

    @property
    def is_waiting(self) -> bool:
        """It ended and will be started again."""
        return self._restart_at is not None

    @property
    def has_ended(self) -> bool:
        """It ran, and will not run again."""
        return self.exit_code is not None and self._process is None and not self.is_waiting

    @property
    def state(self) -> str:
        """In a few words, for people."""
        if self.is_running:
            return f"running, restarted {self.num_restarts}x" if self.num_restarts else "running"
        return "restarting" if self.is_waiting else "ended" if self.has_ended else "not started"

    @property
    def seconds_since_start(self) -> float:
        """Of its newest life."""
        return 0.0 if self._started_at is None else time.monotonic() - self._started_at

    def start(self, *more: str) -> Self:
        """Starts it; from the second time on with `restart_arguments`."""
        again = [] if self._started_at is None else [*self.restart_arguments]
        self._started_at = time.monotonic()
        self._starts.append(self._started_at)
        self._restart_at = None
        self._oom_kills_before = num_oom_kills()
        return super().start(*more, *again)

    def start_anew(self) -> Self:
        """Starts it after an end in order, which counts for nothing."""
        self._starts.clear()
        return self.start()

    def note_progress(self) -> None:
        """It achieved something in this life: what ended earlier ones has passed."""
        self._same_ends = 0

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
        if code in self.final_exit_codes:
            return None if code == 0 else f"{self.name} ended with exit code {code}{self.last_words()}"
        return self._plan_restart(code, now)

    def _plan_restart(self, code: int, now: float) -> str:
        oom_kills = num_oom_kills() - self._oom_kills_before if code == -signal.SIGKILL else 0
        ran_out = oom_kills > 0
        why = _reason(code)
        if ran_out:
            # Whom it killed the kernel does not count: it may have been someone else.
            why += f" in a time in which the kernel killed {oom_kills}x for lack of memory"
        if self._is_same_end_again(code, why, is_own_doing=ran_out):
            return (
                f"{self.name} {why}; given up after {self._same_ends} starts in a row that ended the same way"
                f"{self.last_words()}"
            )
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
        because = "" if code < 0 else self.last_words()
        return f"{self.name} {why}; starting it again in {wait:g} s{because}"

    def _is_same_end_again(self, code: int, why: str, *, is_own_doing: bool) -> bool:
        """Whether it is hopeless: the same end once more. A kill from outside says nothing about it."""
        is_crash = code < 0 and signal.Signals(-code).name in _CRASHES
        if code in OUTSIDE_EXIT_CODES or (code < 0 and not (is_crash or is_own_doing)):
            return False
        cause = why + _NUMBER.sub("#", self.last_sentence())
        is_first = cause != self._last_cause or self.seconds_since_start >= self.policy.long_life_seconds
        self._same_ends = 1 if is_first else self._same_ends + 1
        self._last_cause = cause
        return self._same_ends >= self.policy.max_same_ends

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
