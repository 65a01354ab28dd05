"""Tells the run who is there: the same status that HTTP shows, every few seconds."""

import asyncio
import logging
import threading
from typing import Any

from asympo.common.checkpoints import PolicyRef
from asympo.common.errors import BrokerRefused, BrokerUnavailable
from asympo.common.rollout_log import RunLog
from asympo.common.rollout_log.broker.calls import Calls
from asympo.generator.core import Generator
from asympo.generator.metrics import GeneratorMetrics

log = logging.getLogger(__name__)

MISSED_REPORTS = 4
"""A generator counts as gone when this many reports in a row did not come."""
MIN_TTL_SECONDS = 5.0
"""A busy machine may be late by this much whatever the interval."""
GOODBYE_SECONDS = 2.0


class PresenceReporter:
    """Reports the generator's status until it ends."""

    def __init__(
        self,
        *,
        generator: Generator,
        run_log: RunLog,
        calls: Calls,
        metrics: GeneratorMetrics,
        interval_seconds: float,
    ) -> None:
        self._generator = generator
        self._run_log = run_log
        self._calls = calls
        self._metrics = metrics
        self._interval_seconds = interval_seconds
        self._telling = threading.Lock()
        self._is_leaving = False
        self._is_refused = False
        """Whether the broker turned the newest report away."""

    async def run(self) -> None:
        """Report for ever."""
        while True:
            await self.report()
            await asyncio.sleep(self._interval_seconds)

    async def claim(self, policy: PolicyRef | None) -> None:
        """Tell the learner which policy is about to be loaded, before it is verified; None once it is served.

        Without the broker nobody hears it: then a policy may go while it is loaded.
        """
        self._generator.loading = policy
        if policy is not None:
            await self.report()

    async def say_goodbye(self) -> None:
        """Vanish from the list now instead of after the last report's time."""
        self._is_leaving = True
        try:
            async with asyncio.timeout(GOODBYE_SECONDS):
                await self._calls.run(self._tell, {}, ttl_seconds=0)
        except (BrokerRefused, BrokerUnavailable, TimeoutError) as error:
            log.debug("Nobody heard the goodbye: %r", error)

    async def report(self) -> None:
        """Report now."""
        parts = self._generator.parts
        if parts:
            self._generator.rate.note(parts.engine.stats.num_tokens_generated)
            self._metrics.engine_seen(parts.engine.stats)
            self._metrics.groups_held.set(parts.gate.num_held)
        try:
            ttl_seconds = max(MIN_TTL_SECONDS, self._interval_seconds * MISSED_REPORTS)
            await self._calls.run(self._tell, self._generator.status(), ttl_seconds=ttl_seconds)
        except BrokerRefused as error:
            # What is shown to people ends no generator: whether it may work for the run is said elsewhere.
            self._metrics.count_broker_error()
            if not self._is_refused:
                log.warning("The broker takes no report: %s", error)
            self._is_refused = self._generator.is_broker_answering = True
        except BrokerUnavailable as error:
            self._metrics.count_broker_error()
            if self._generator.is_broker_answering:
                log.warning("No report reaches the broker: %s", error)
            self._generator.is_broker_answering = False
        else:
            self._is_refused, self._generator.is_broker_answering = False, True
        self._metrics.ready.set(self._generator.not_ready_reason is None)

    def _tell(self, status: dict[str, Any], *, ttl_seconds: float) -> None:
        """In a thread, which goes on when a report is cancelled. One at a time, none after the goodbye."""
        with self._telling:
            if not ttl_seconds or not self._is_leaving:
                self._run_log.presence.report(self._generator.holder, status, ttl_seconds=ttl_seconds)
