"""The groups in flight: what a reload, a lost lease or a drain has to reach."""

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from asympo.common.rollout_log import Lease, Refused
from asympo.generator.metrics import GeneratorMetrics

log = logging.getLogger(__name__)
T = TypeVar("T")

GIVE_UP_SECONDS = 10.0
"""How long the engine may take to end the requests of groups that are given up."""


class StopReason(StrEnum):
    """Why a group is given up before its end."""

    LEASE_LOST = "lease lost"
    DRAIN = "generator drained"
    UNPROVEN = "policy failed"


class GroupStopped(Exception):
    """The group was told to stop; its `stop_reason` says why."""


@dataclass(eq=False, slots=True)
class GroupInFlight:
    """A lease and what is known of the work under it."""

    lease: Lease
    request_id: str
    """Name of its generation inside the engine."""
    num_samples: int
    wanted_at_ns: int = 0
    """When its holder began to ask for a lease, in nanoseconds since 1970."""
    is_sampling: bool = False
    """Its responses are inside the engine."""
    spans_reload: bool = False
    """A reload began while it was sampling."""
    is_unproven: bool = False
    """Its last tokens were sampled from weights that had no verdict yet."""
    stop_reason: StopReason | None = None
    no_slot: Refused | None = None
    """What its append was told of the next lease; None while slots were free."""
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self, reason: StopReason) -> None:
        """Give up at the next opportunity; only the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
            self._stopped.set()

    async def unless_stopped(self, work: Awaitable[T]) -> T:
        """The result of `work`, or GroupStopped; `work` is then cancelled."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise GroupStopped(self.stop_reason)
        finally:
            stopped.cancel()
            if not task.done():
                task.cancel()


class GroupsInFlight:
    """Every leased group with the task that works on it. Belongs to one event loop."""

    def __init__(self, *, metrics: GeneratorMetrics) -> None:
        self._metrics = metrics
        self._tasks: dict[GroupInFlight, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[GroupInFlight]:
        return iter(tuple(self._tasks))

    def __contains__(self, group: object) -> bool:
        return group in self._tasks

    def add(self, group: GroupInFlight, task: "asyncio.Task[None]") -> None:
        self._tasks[group] = task
        self._metrics.groups_in_flight.set(len(self._tasks))

    def discard(self, group: GroupInFlight) -> None:
        self._tasks.pop(group, None)
        self._metrics.groups_in_flight.set(len(self._tasks))

    def mark_reload(self) -> None:
        """A reload begins: whatever is being sampled now spans it."""
        for group in self:
            group.spans_reload = group.spans_reload or group.is_sampling

    async def give_up_unproven(self, reason: str) -> None:
        """The weights now loaded failed: hand back all that was sampled from them.

        Returns when the engine holds none of these requests any more.
        """
        groups = [group for group in self if group.is_sampling or group.is_unproven]
        log.warning("%d groups in flight are handed back: %s", len(groups), reason)
        await self.stop(groups, StopReason.UNPROVEN, timeout_seconds=GIVE_UP_SECONDS)

    async def stop(
        self, groups: Sequence[GroupInFlight], reason: StopReason, *, timeout_seconds: float
    ) -> None:
        """Tell these groups to stop and wait for their tasks to settle the leases."""
        for group in groups:
            group.stop(reason)
        await self.settled(groups, timeout_seconds=timeout_seconds)

    async def settled(self, groups: Sequence[GroupInFlight], *, timeout_seconds: float) -> None:
        """Wait until the tasks of these groups have ended, or the time is over."""
        tasks = [self._tasks[group] for group in groups if group in self._tasks]
        if tasks and timeout_seconds > 0:
            await asyncio.wait(tasks, timeout=timeout_seconds)
