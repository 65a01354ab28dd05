"""Waits until it is this generator's turn to load a policy, and keeps it for as long as that takes."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from asympo.common.checkpoints import PolicyRef
from asympo.common.errors import BrokerRefused, BrokerUnavailable
from asympo.generator.context import GeneratorContext

log = logging.getLogger(__name__)

_CLAIM_SECONDS = 10.0
"""After which the turn of a generator that died or stands still passes to another."""
_ASK_SECONDS = 0.25
_NUM_ASKS = 12


class SwapTurns:
    """First one generator proves a policy, then a share of the fleet at a time loads it."""

    def __init__(self, context: GeneratorContext) -> None:
        self._swaps = context.run_log.swaps
        self._calls = context.calls
        self._holder = context.holder
        # Where nobody gets work without the newest policy, waves would only make all of them wait longer.
        self._share = 1.0 if context.config.max_staleness == 0 else context.settings.reload_share

    async def come(self, policy: PolicyRef) -> bool:
        """Whether it came before it is time to look for another policy, as this one is bad or may be old."""
        for number in range(_NUM_ASKS):
            has_come = await self._calls.until_answered(self._claim, policy)
            if has_come is not False:
                return has_come is True
            if number == 0:
                log.info("Policy %d is being loaded by others first", policy.step)
            await asyncio.sleep(_ASK_SECONDS)
        return False

    @contextlib.asynccontextmanager
    async def kept(self, policy: PolicyRef) -> AsyncIterator[None]:
        """While the policy is loaded; what raises inside leaves the turn to expire."""
        renewing = asyncio.ensure_future(self._renew(policy))
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.wait({renewing})

    async def ended(self, policy: PolicyRef, *, is_served: bool) -> None:
        """Tells whether others may follow; without the broker they hear of it when the turn expires."""
        swaps = self._swaps
        try:
            if is_served:
                await self._calls.run(swaps.proved, self._holder, step=policy.step, fence=policy.fence)
            else:
                await self._calls.run(swaps.give_up, self._holder)
        except (BrokerUnavailable, BrokerRefused) as error:
            log.warning("Nobody heard that policy %d was loaded: %s", policy.step, error)

    async def _renew(self, policy: PolicyRef) -> None:
        while True:
            await asyncio.sleep(_CLAIM_SECONDS / 4)
            with contextlib.suppress(BrokerUnavailable):
                await self._calls.run(self._claim, policy)

    def _claim(self, policy: PolicyRef) -> bool | None:
        try:
            return self._swaps.claim(
                self._holder, step=policy.step, fence=policy.fence, share=self._share, seconds=_CLAIM_SECONDS
            )
        except BrokerRefused as error:
            log.warning("Policy %d is loaded out of turn: %s", policy.step, error)
            return True
