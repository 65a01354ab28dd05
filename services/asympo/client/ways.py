"""What every way to the log does, and what is the same on all of them."""

import asyncio
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

from asympo.common.errors import AsympoError, InvalidRecord, NoProgress
from asympo.common.records import RolloutGroup

RETRIED = frozenset({"no_capacity", "over_share", "paused", "not_started"})
"""Outcomes that change with time."""
MAX_PAUSE_SECONDS = 5.0
CALL_SECONDS = 90.0
"""Of one call: longer than any gateway waits for a slot."""


class ProducerRefused(AsympoError):
    """The gateway refuses the record or the caller; sending it again cannot help."""


class Unreachable(AsympoError):
    """Nobody answered; whatever was sent may be sent again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one group."""

    group_id: str
    """In the log."""
    outcome: str
    """`appended`, `duplicate`, `too_old`, `run_ended`, `invalid`, …"""
    reason: str = ""
    """Which field is wrong and why, where that is so."""

    @property
    def is_in_log(self) -> bool:
        """Whether it will be trained, now or before."""
        return self.outcome in ("appended", "duplicate")


class Way(Protocol):
    """One way to the log."""

    async def submit(self, group: RolloutGroup, *, max_wait_seconds: float) -> Outcome: ...

    async def submit_many(
        self, groups: Iterable[RolloutGroup] | AsyncIterable[RolloutGroup], *, max_wait_seconds: float
    ) -> list[Outcome]: ...

    async def close(self) -> None: ...


class Patience:
    """Growing, jittered pauses until the time is over."""

    def __init__(self, max_wait_seconds: float) -> None:
        self._max_wait_seconds = max_wait_seconds
        self.renew()

    def renew(self) -> None:
        """A group was taken: the time begins anew."""
        self._deadline = time.monotonic() + self._max_wait_seconds
        self._pause_seconds = 0.1

    async def pause(self, why: str) -> None:
        """Wait before the next attempt; raises NoProgress when there is to be none."""
        if time.monotonic() >= self._deadline:
            raise NoProgress(f"no group was taken for {self._max_wait_seconds:.0f} s: {why}")
        await asyncio.sleep(random.uniform(0.5, 1.0) * self._pause_seconds)
        self._pause_seconds = min(2 * self._pause_seconds, MAX_PAUSE_SECONDS)


def checked(outcome: Outcome) -> Outcome:
    """Raises ProducerRefused for a record that is wrong."""
    if outcome.outcome == "invalid":
        raise ProducerRefused(f"group {outcome.group_id} is refused: {outcome.reason}")
    return outcome


def refusal(group: RolloutGroup, error: InvalidRecord) -> Outcome:
    """Of a group that cannot be sent at all."""
    return Outcome(group_id=str(group.group_id), outcome="invalid", reason=str(error))


async def each(groups: Iterable[RolloutGroup] | AsyncIterable[RolloutGroup]) -> AsyncIterator[RolloutGroup]:
    """Groups of either kind of source."""
    if isinstance(groups, AsyncIterable):
        async for group in groups:
            yield group
    else:
        for group in groups:
            yield group
