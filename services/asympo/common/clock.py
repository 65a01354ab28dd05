"""Time as a dependency, so that tests need not wait."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where a component takes time from."""

    def now_seconds(self) -> float:
        """Seconds since 1970; for what other machines see."""

    def monotonic_seconds(self) -> float:
        """Seconds that never go back; for durations and deadlines."""

    def sleep(self, seconds: float) -> None:
        """Blocks this thread."""


class SystemClock:
    """The machine's clock."""

    def now_seconds(self) -> float:
        return time.time()

    def monotonic_seconds(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
