"""What goes wrong while every process runs: warnings that repeat, loops that cannot succeed, silence."""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from asympo.common.errors import NoProgress

_NUMBER = re.compile(r"\d+")
_RECENT_SECONDS = 180.0


@dataclass(kw_only=True)
class _Warned:
    service: str
    text: str
    level: str
    counts: dict[int, int]
    """By life of the process."""
    last_at: float
    said_at_count: int = 0

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def line(self) -> str:
        times = "once" if self.count == 1 else f"{self.count:,} times"
        return f"{self.service}: {self.text} ({times})"


class Warnings:
    """What the services warn about, kept over restarts of their processes."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[tuple[str, str], _Warned] = {}

    def note(self, service: str, life: int, warnings: Iterable[Mapping[str, Any]]) -> list[str]:
        """Sentences for a person: an error at once, a warning when it repeats, both at every tenfold."""
        found = []
        for each in warnings:
            text = str(each.get("text", ""))
            key = (service, _NUMBER.sub("#", text))
            warned = self._known.setdefault(
                key, _Warned(service=service, text=text, level="", counts={}, last_at=0.0)
            )
            warned.text, warned.level = text, str(each.get("level", ""))
            warned.counts[life] = int(each.get("count") or 0)
            warned.last_at = float(each.get("last_at_seconds") or 0.0)
            least = 1 if warned.level in ("error", "critical") else 2
            if warned.count >= max(least, 10 * warned.said_at_count):
                warned.said_at_count = warned.count
                found.append(warned.line)
        return found

    @property
    def lines(self) -> list[str]:
        """One line each with its count, errors first, then what is frequent."""
        shown = [each for each in self._known.values() if each.said_at_count]
        return [each.line for each in sorted(shown, key=lambda each: (each.level == "warning", -each.count))]

    @property
    def likely_cause(self) -> str:
        """What is warned about most now; empty when nobody warns."""
        now = self._clock()
        recent = [each for each in self._known.values() if each.last_at > now - _RECENT_SECONDS]
        return max(recent, key=lambda each: each.count).line if recent else ""


class ProgressWatch:
    """Notices that a run goes round in circles, or stands still."""

    def __init__(
        self,
        *,
        failing_seconds: float,
        stall_seconds: float,
        give_up_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failing, self._stall, self._give_up = failing_seconds, stall_seconds, give_up_seconds
        self._clock = clock
        self._newest: tuple[int, int] | None = None
        self._moved_at = clock()
        self._failures_before = 0
        self._is_said = False

    def rest(self) -> None:
        """Nothing is expected to move now."""
        self._moved_at = self._clock()

    def note(self, *, step: int, num_groups: int, num_failures: int, cause: str) -> str | None:
        """Where the run is now; a sentence when it has stalled. Raises NoProgress when there is no hope."""
        now = self._clock()
        if (step, num_groups) != self._newest:
            self._newest, self._moved_at, self._failures_before = (step, num_groups), now, num_failures
            self._is_said = False
            return None
        waited, because = now - self._moved_at, f": {cause}" if cause else ""
        failed = num_failures - self._failures_before
        if failed and waited > self._failing:
            raise NoProgress(
                f"for {_minutes(waited)} no group reached the log and {failed} prompts failed"
                f"{because} (run.failing_seconds)"
            )
        if waited > self._give_up:
            raise NoProgress(f"no group and no step for {_minutes(waited)}{because} (run.give_up_seconds)")
        if waited > self._stall and not self._is_said:
            self._is_said = True
            return f"no group and no step for {_minutes(waited)}{because}"
        return None


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
