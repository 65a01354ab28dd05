"""Learns which policy to serve: announcements first, a slow look at the directory as the fallback."""

import asyncio
import logging

from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.checkpoints.names import StepName
from asympo.common.clock import Clock
from asympo.common.errors import BrokerUnavailable
from asympo.common.rollout_log import PolicyAnnouncement, RunLog
from asympo.common.rollout_log.broker.calls import Backoff, Calls
from asympo.generator.metrics import GeneratorMetrics

log = logging.getLogger(__name__)


def rank_of(policy: PolicyRef | None) -> tuple[int, int]:
    """Sorting key: a higher fence wins over any step. No policy sorts below all."""
    return (-1, -1) if policy is None else (policy.fence, policy.step)


class PolicyWatcher:
    """Finds the newest policy that is worth trying. An announcement is only a reason to look."""

    def __init__(
        self,
        *,
        run_log: RunLog,
        store: PolicyStore,
        calls: Calls,
        metrics: GeneratorMetrics,
        clock: Clock,
        poll_seconds: float,
        wait_seconds: float,
    ) -> None:
        self._run_log = run_log
        self._store = store
        self._calls = calls
        self._metrics = metrics
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._wait_seconds = wait_seconds
        self._announced: PolicyAnnouncement | None = None
        self._passed_over_until: dict[str, float] = {}
        self._bad: frozenset[str] = frozenset()

    async def newest(self) -> PolicyRef | None:
        """The newest visible policy that nobody marked bad; None when there is none."""
        bad = await self._calls.until_answered(self._run_log.policies.bad)
        self._bad = frozenset(str(StepName(step=policy.step, fence=policy.fence)) for policy in bad)
        now = self._clock.monotonic_seconds()
        self._passed_over_until = {
            name: until for name, until in self._passed_over_until.items() if until > now
        }
        corrupt: list[StepName] = []
        try:
            newest = await self._calls.run(
                self._store.newest,
                exclude=self._bad | set(self._passed_over_until),
                on_corrupt=corrupt.append,
            )
        except OSError as error:
            log.error("The policies in %s cannot be read: %s", self._store.path, error)
            newest = None
        for name in corrupt:
            self._pass_over(str(name))
        return newest

    async def older_than(self, policy: PolicyRef) -> PolicyRef | None:
        """The newest policy below `policy` that nobody marked bad: the one to fall back to."""
        try:
            policies = await self._calls.run(self._store.list)
        except OSError as error:
            log.error("The policies in %s cannot be read: %s", self._store.path, error)
            return None
        below = [p for p in policies if rank_of(p) < rank_of(policy) and p.name not in self._bad]
        return max(below, key=rank_of, default=None)

    def pass_over(self, policy: PolicyRef) -> None:
        """Pass over `policy` for a while: its files do not verify, which may pass on slow storage."""
        self._pass_over(policy.name)

    def _pass_over(self, name: str) -> None:
        self._metrics.count_corrupt_policy()
        self._passed_over_until[name] = self._clock.monotonic_seconds() + self._poll_seconds

    async def next_after(self, current: PolicyRef | None) -> PolicyRef:
        """Wait for a policy that ranks above `current`; several published ones are skipped to the newest."""
        backoff = Backoff()
        while True:
            newest = await self.newest()
            if newest is not None and rank_of(newest) > rank_of(current):
                return newest
            if self._is_announced_above(current):
                # Announced, and not visible here yet: shared storage is slower than the broker.
                await asyncio.sleep(min(backoff.next_seconds(), self._poll_seconds))
                await self._wait_for_announcement(0.0)
            else:
                await self._wait_for_announcement(self._poll_seconds)

    def _is_announced_above(self, current: PolicyRef | None) -> bool:
        announced = self._announced
        if announced is None or (announced.fence, announced.step) <= rank_of(current):
            return False
        return str(StepName(step=announced.step, fence=announced.fence)) not in self._bad

    async def _wait_for_announcement(self, timeout_seconds: float) -> None:
        """Returns at a new announcement, or after the time-out. Short waits: nothing outlives a stop."""
        deadline = self._clock.monotonic_seconds() + timeout_seconds
        while True:
            left_seconds = deadline - self._clock.monotonic_seconds()
            try:
                if left_seconds <= 0:
                    self._announced = await self._calls.run(self._run_log.policies.latest) or self._announced
                    return
                announced = await self._calls.run(
                    self._run_log.policies.wait, self._announced, min(left_seconds, self._wait_seconds)
                )
            except BrokerUnavailable as error:
                self._metrics.count_broker_error()
                log.warning("No policy announcements while the broker is away: %s", error)
                await asyncio.sleep(min(self._wait_seconds, max(left_seconds, 0.1)))
                continue
            if announced is not None:
                self._announced = announced
                return
