"""Straight into the rollout log, without a gateway: for a producer that may reach the broker."""

import asyncio
from collections.abc import AsyncIterable, Iterable

from asympo.client.outbox import send_all
from asympo.client.ways import RETRIED, Outcome, Patience, checked, refusal
from asympo.common.codec import encode_group
from asympo.common.errors import BrokerUnavailable, InvalidRecord
from asympo.common.records import RolloutGroup
from asympo.common.rollout_log import Broker, RunLog, Submission, foreign_id


class LogWay:
    """One connection to the broker, opened when it is first needed."""

    def __init__(self, address: str, *, run: str, producer: str) -> None:
        self._address = address
        self._run = run
        self._producer = producer
        self._log: RunLog | None = None

    async def submit(self, group: RolloutGroup, *, max_wait_seconds: float) -> Outcome:
        """One group, until it has a final answer."""
        return checked(await self._submit(group, Patience(max_wait_seconds)))

    async def submit_many(
        self, groups: Iterable[RolloutGroup] | AsyncIterable[RolloutGroup], *, max_wait_seconds: float
    ) -> list[Outcome]:
        """One after the other."""

        async def send(batch: list[RolloutGroup]) -> list[Outcome]:
            return [await self._submit(group, Patience(max_wait_seconds)) for group in batch]

        return await send_all(
            groups, encode=lambda group: group, send=send, num_bytes=lambda _: 0, max_groups=1
        )

    async def close(self) -> None:
        """Ends the connection."""
        if self._log is not None:
            await asyncio.to_thread(self._log.broker.close)

    async def _submit(self, group: RolloutGroup, patience: Patience) -> Outcome:
        try:
            group_id = foreign_id(self._producer, str(group.group_id))
            named = RolloutGroup(group_id=group_id, prompt=group.prompt, responses=group.responses)
            submission = Submission(group_id=group_id, payload=encode_group(named))
        except InvalidRecord as error:
            return refusal(group, error)
        while True:
            try:
                if self._log is None:
                    broker = await asyncio.to_thread(Broker.connect, self._address)
                    self._log = RunLog(broker, self._run)
                log = self._log
                answers, refused = await asyncio.to_thread(
                    log.submissions.submit, self._producer, [submission]
                )
                outcome = answers[0].outcome.value
                if outcome not in RETRIED:
                    return Outcome(group_id=group_id, outcome=outcome)
                await asyncio.to_thread(log.leases.wait_for_slot, 1.0, refused=refused)
            except BrokerUnavailable as error:
                outcome = str(error)
            await patience.pause(outcome)
