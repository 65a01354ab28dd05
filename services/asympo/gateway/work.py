"""Prompts of the run's task, leased to producers that want some."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from asympo.common.errors import AsympoError
from asympo.common.rollout_log import AppendOutcome, Lease, RefusalReason, RunConfig, RunLog, RunState
from asympo.common.rollout_log.broker.calls import Calls
from asympo.gateway.metrics import GatewayMetrics
from asympo.gateway.policy_text import PolicyText, PromptUnfit
from asympo.gateway.producers import Producer

log = logging.getLogger(__name__)

MAX_WAIT_SECONDS = 2.0
"""Longest single wait for a slot."""
STOP_RETRY_SECONDS = 1.0
"""After which a caller of a gateway that stops asks again, another one or the next."""
MAX_TOKEN_CHARS = 64
"""Of a lease's token: longer ones are none."""


async def nobody_leaves() -> bool:
    """For callers whose call is cancelled when they leave."""
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Granted:
    """A prompt, and the right to answer it."""

    lease: Lease
    """With its secret token."""
    token_ids: tuple[int, ...]
    """Of the prompt, as the policy is asked it."""
    text: str
    """The same as text."""
    messages_json: str
    """Its messages; empty for a prompt of plain text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoWork:
    """No prompt now."""

    reason: str
    """A RefusalReason."""
    retry_after_seconds: float
    """When to ask again."""


class Work:
    """The leases that this gateway's producers hold. Belongs to one event loop.

    A lease's holder in the log is its producer, so that other gateways know it, too: they renew and append as
    well. Leases of a gateway that went away expire like any others.
    """

    def __init__(
        self,
        *,
        run_log: RunLog,
        run_id: str,
        config: RunConfig,
        calls: Calls,
        metrics: GatewayMetrics,
        text: PolicyText,
    ) -> None:
        self._run_log, self._run_id = run_log, run_id
        self._config = config
        self._calls = calls
        self._metrics = metrics
        self.text = text
        self._held: dict[str, tuple[str, Lease, float]] = {}
        self._answered: set[str] = set()
        """Tokens among them that are kept for retries alone."""
        self._is_stopping = False

    async def get(
        self,
        producer: Producer,
        *,
        wait_seconds: float,
        policy_step: int | None,
        has_left: Callable[[], Awaitable[bool]],
    ) -> Granted | NoWork:
        """One prompt, or why there was none within `wait_seconds`. A caller that has left is given none."""
        deadline = time.monotonic() + wait_seconds
        while not self._is_stopping:
            step = policy_step if policy_step is not None else await self._newest_step()
            answer = await self._calls.run(
                self._run_log.leases.acquire, holder=producer.name, policy_step=step, run_id=self._run_id
            )
            if isinstance(answer, Lease):
                if await has_left():
                    await self.hand_back(answer, reason="its caller has left")
                    return NoWork(reason=RefusalReason.NO_CAPACITY.value, retry_after_seconds=0.0)
                return await self._grant(producer, answer)
            left = deadline - time.monotonic()
            if left <= 0 or answer.reason is RefusalReason.RUN_ENDED or await has_left():
                return NoWork(reason=answer.reason.value, retry_after_seconds=answer.retry_after_seconds)
            await self._calls.wait(
                self._run_log.leases.wait_for_slot, min(left, MAX_WAIT_SECONDS), refused=answer
            )
        return NoWork(reason=RefusalReason.PAUSED.value, retry_after_seconds=STOP_RETRY_SECONDS)

    def stop_granting(self) -> None:
        """Whoever waits is given no prompt that would go back at once."""
        self._is_stopping = True

    async def is_over(self) -> bool:
        """Whether the run has ended."""
        return await self._calls.run(self._run_log.state.get) in (RunState.FINISHED, RunState.FAILED)

    async def lease_of(self, producer: Producer, token: str) -> Lease | None:
        """The lease that a token proves, granted through this gateway or another; None if it is lost."""
        name, lease, _ = self._held.get(token, (producer.name, None, 0.0))
        if lease is None and len(token) <= MAX_TOKEN_CHARS:
            lease = await self._calls.run(self._run_log.leases.find, token, holder=producer.name)
        return lease if name == producer.name else None

    async def append(self, producer: Producer, lease: Lease, payload: bytes) -> str:
        """Appends under a lease; how it ended."""
        result = await self._calls.until_answered(
            self._run_log.leases.append, lease, payload, producer=producer.name
        )
        if result.outcome is not AppendOutcome.TOO_LARGE:
            # Kept until it expires, so that a retry finds it and is told the same.
            self._answered.add(lease.token)
            self._show()
        return "run_ended" if result.outcome is AppendOutcome.REFUSED else result.outcome.value

    async def renew(self, producer: Producer, *, keep: list[str], hand_back: list[str]) -> list[str]:
        """Keeps leases and hands others back; tokens of those that are lost."""
        self._forget_expired()
        found = {token: await self.lease_of(producer, token) for token in (*keep, *hand_back)}
        own = {token: lease for token, lease in found.items() if lease is not None}
        lost = [token for token, lease in found.items() if lease is None]
        kept = [own[token] for token in keep if token in own]
        gone = (
            {lease.token for lease in await self._calls.run(self._run_log.leases.renew, kept)}
            if kept
            else set()
        )
        for token in hand_back:
            if token in own:
                await self._calls.run(
                    self._run_log.leases.hand_back, own[token], reason="handed back by its producer"
                )
        for token in {*gone, *hand_back} - self._answered:
            self._held.pop(token, None)
        until = time.monotonic() + self._config.max_lease_seconds
        for lease in kept:
            if lease.token not in gone and lease.token in self._held:
                self._held[lease.token] = (producer.name, lease, until)
        self._show()
        return [*lost, *gone]

    async def hand_back(self, lease: Lease, *, reason: str, is_prompt_failure: bool = False) -> None:
        """Gives a prompt back; after a few failures of its own it is set aside for its epoch."""
        self._held.pop(lease.token, None)
        self._show()
        await self._calls.until_answered(
            self._run_log.leases.hand_back, lease, reason=reason[:500], is_prompt_failure=is_prompt_failure
        )

    async def close(self) -> None:
        """Hands back what is held, as long as the broker answers."""
        for _, lease, _ in tuple(self._held.values()):
            try:
                await self._calls.run(self._run_log.leases.hand_back, lease, reason="the gateway stops")
            except AsympoError as error:
                log.warning("Leases will expire: %s", error)
                return

    async def _newest_step(self) -> int:
        newest = await self._calls.run(self._run_log.policies.latest)
        return newest.step if newest else 0

    async def _grant(self, producer: Producer, lease: Lease) -> Granted:
        try:
            prompt, token_ids, text = await self._calls.run(self.text.prompt, lease.index)
        except BaseException as error:
            # Without task or tokenizer no prompt can be rendered: that is no failure of this one.
            is_unfit = isinstance(error, PromptUnfit)
            reason = str(error)[:500] if is_unfit else "it could not be rendered"
            hand_back = self._run_log.leases.hand_back
            await asyncio.shield(self._calls.run(hand_back, lease, reason=reason, is_prompt_failure=is_unfit))
            raise
        self._forget_expired()
        until = time.monotonic() + self._config.max_lease_seconds
        self._held[lease.token] = (producer.name, lease, until)
        self._show()
        messages = [] if prompt.messages is None else [dict(message) for message in prompt.messages]
        return Granted(
            lease=lease,
            token_ids=tuple(token_ids),
            text=text,
            messages_json=json.dumps(messages) if messages else "",
        )

    def _show(self) -> None:
        self._answered &= self._held.keys()
        self._metrics.leases.set(len(self._held) - len(self._answered))

    def _forget_expired(self) -> None:
        now = time.monotonic()
        self._held = {token: held for token, held in self._held.items() if held[2] > now}
