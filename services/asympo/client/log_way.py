"""Straight into the rollout log, without a gateway: for a producer that may reach the broker."""

import asyncio
from collections.abc import AsyncIterable, Iterable
from dataclasses import replace

from asympo.client.outbox import send_all
from asympo.client.ways import RETRIED, Outcome, Patience, checked, refusal
from asympo.common.codec import WireLimits, check_group, encode_group, to_message
from asympo.common.errors import BrokerUnavailable, InvalidRecord, RunConfigMismatch
from asympo.common.records import RolloutGroup
from asympo.common.rollout_log import Broker, RunLog, Submission, SubmitOutcome, foreign_id


class LogWay:
    """One connection to the broker, opened when it is first needed."""

    def __init__(self, address: str, *, run: str, producer: str) -> None:
        self._address = address
        self._run = run
        self._producer = producer
        self._log: RunLog | None = None
        self._run_id = ""
        """Of the run that it has joined; empty before that."""
        self._joining = asyncio.Lock()

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
            submission = self._encoded(group)
        except InvalidRecord as error:
            return refusal(group, error)
        while True:
            try:
                log = await self._join()
                answers, refused = await asyncio.to_thread(
                    log.submissions.submit, self._producer, [submission], run_id=self._run_id
                )
                outcome = answers[0].outcome.value
                if outcome == SubmitOutcome.NOT_STARTED:
                    await self._check_same_run(log)
                if outcome not in RETRIED:
                    return Outcome(group_id=submission.group_id, outcome=outcome)
                await asyncio.to_thread(log.leases.wait_for_slot, 1.0, refused=refused)
            except BrokerUnavailable as error:
                outcome = str(error)
            await patience.pause(outcome)

    def _encoded(self, group: RolloutGroup) -> Submission:
        """Raises InvalidRecord for what no learner takes."""
        group = replace(group, group_id=foreign_id(self._producer, str(group.group_id)))
        payload = encode_group(group)
        # The run's group size is not for producers to read: only the learner checks by it how many responses
        # there are, and how many unscored ones.
        check_group(to_message(group), limits=WireLimits())
        return Submission(group_id=group.group_id, payload=payload)

    async def _join(self) -> RunLog:
        """Once for all that are submitted at the same time; where the run is not there yet, again."""
        async with self._joining:
            if self._log is None:
                self._log = RunLog(await asyncio.to_thread(Broker.connect, self._address), self._run)
            if not self._run_id:
                self._run_id = await asyncio.to_thread(self._log.state.run_id)
            return self._log

    async def _check_same_run(self, log: RunLog) -> None:
        """Raises RunConfigMismatch if there is another run of that name."""
        found = await asyncio.to_thread(log.state.run_id)
        if found and self._run_id and found != self._run_id:
            raise RunConfigMismatch(
                f"run {self._run!r} was deleted and created anew since this client joined it: "
                "open another client for the new one"
            )
