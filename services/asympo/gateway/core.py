"""The one object behind HTTP and gRPC: takes groups, hands out prompts, tells of policies."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from asympo.common.codec import WireLimits, check_group
from asympo.common.errors import AsympoError, BrokerRefused, BrokerUnavailable, InvalidRecord
from asympo.common.rollout_log import (
    PolicyAnnouncement,
    RunConfig,
    RunLog,
    Submission,
    SubmitOutcome,
    Submitted,
    foreign_id,
)
from asympo.common.rollout_log.broker.calls import Calls
from asympo.gateway.metrics import GatewayMetrics
from asympo.gateway.producers import Producer
from asympo.gateway.queues import ProducerQueue
from asympo.gateway.work import Granted, NoWork, Work, nobody_leaves
from asympo.v1 import rollout_pb2

POLICY_WAIT_SECONDS = 5.0
"""Longest single wait for a policy; a caller that left is noticed between two."""


_WHY: Mapping[str, str] = {
    SubmitOutcome.NO_CAPACITY: "the run takes no more groups until some are trained: send it again later",
    SubmitOutcome.OVER_SHARE: "the producer has its share of the slots while others hold some, or its groups "
    "of this minute: send it again later",
    SubmitOutcome.PAUSED: "the run is draining: send it again later",
    SubmitOutcome.NOT_STARTED: "no learner has started the run: send it again later",
    SubmitOutcome.TOO_OLD: "its number is below all that are remembered: give a number that grows",
    SubmitOutcome.TOO_LARGE: "it has more bytes than a record of this run may have",
    SubmitOutcome.RUN_ENDED: "the run has ended",
    "lease_lost": "lease_token belongs to no lease that the producer holds: it expired or was handed back",
}


class NotJoined(AsympoError):
    """The gateway has not joined its run yet; ask again."""


UNAVAILABLE = (NotJoined, BrokerUnavailable, BrokerRefused)
"""Nothing that the caller did wrong: it asks again later. A broker's users may be put right while we run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What became of one submitted group."""

    outcome: str
    """A SubmitOutcome or AppendOutcome, or `invalid`."""
    group_id: str
    """In the log; as given when it could not be read."""
    reason: str = ""
    """Which field is wrong and why, or why it was not taken; empty when it was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedParts:
    """What exists once the run is joined."""

    run_log: RunLog
    run_id: str
    config: RunConfig
    work: Work


class Gateway:
    """Exists before its run is joined, so that it can be asked how the start is going."""

    def __init__(
        self, *, run: str, metrics: GatewayMetrics, calls: Calls, limits: WireLimits, max_queued_groups: int
    ) -> None:
        self.run = run
        self._metrics = metrics
        self._calls = calls
        self._limits = limits
        self._max_queued = max_queued_groups
        self._queues: dict[str, ProducerQueue] = {}
        self._parts: JoinedParts | None = None

    def attach(self, parts: JoinedParts) -> None:
        """The run is joined: from now on there is something to do."""
        self._parts = parts
        self._limits = replace(self._limits, max_responses=parts.config.group_size)

    @property
    def parts(self) -> JoinedParts:
        """Raises NotJoined before the run is joined."""
        if self._parts is None:
            raise NotJoined(
                f"the gateway waits for run {self.run}: no learner has created it, or its broker is away"
            )
        return self._parts

    @property
    def not_ready_reason(self) -> str | None:
        """Why it cannot do useful work; None when it can."""
        return None if self._parts else f"waiting for run {self.run}"

    async def submit(
        self, producer: Producer, group: rollout_pb2.RolloutGroup, *, lease_token: str, wait_seconds: float
    ) -> Answer:
        """Appends one group; says what became of it. Raises one of UNAVAILABLE."""
        if lease_token:
            return await self._submit_leased(producer, group, lease_token)
        pending = await self.enqueue(producer, group, wait_seconds=wait_seconds)
        return pending if isinstance(pending, Answer) else answer_of(await pending, group.group_id)

    async def enqueue(
        self, producer: Producer, group: rollout_pb2.RolloutGroup, *, wait_seconds: float | None
    ) -> "Answer | asyncio.Future[Submitted]":
        """Takes one group of the producer's own as soon as there is room, and names it as in the log."""
        parts, given = self.parts, group.group_id
        try:
            group.group_id = foreign_id(producer.name, given)
            check_group(group, limits=self._limits)
        except InvalidRecord as error:
            return self.refuse(producer, given, str(error))
        submission = Submission(group_id=group.group_id, payload=group.SerializeToString(deterministic=True))
        return await self._queue(producer, parts).put(submission, wait_seconds=wait_seconds)

    def refuse(self, producer: Producer, group_id: str, reason: str) -> Answer:
        """The answer to a record that breaks the schema."""
        self._metrics.count_group(producer.name, "invalid")
        return Answer(outcome="invalid", group_id=group_id[:128], reason=reason)

    async def get_work(
        self,
        producer: Producer,
        *,
        wait_seconds: float,
        policy_step: int | None,
        has_left: Callable[[], Awaitable[bool]] = nobody_leaves,
    ) -> Granted | NoWork:
        """Leases a prompt of the run's task to a producer."""
        return await self.parts.work.get(
            producer, wait_seconds=wait_seconds, policy_step=policy_step, has_left=has_left
        )

    async def renew_work(self, producer: Producer, *, keep: list[str], hand_back: list[str]) -> list[str]:
        """Keeps leases, or hands their prompts back; tokens of those that are lost."""
        return await self.parts.work.renew(producer, keep=keep, hand_back=hand_back)

    async def watch_policy(self) -> AsyncIterator[PolicyAnnouncement]:
        """The newest policy and each one after it."""
        policies, newest = self.parts.run_log.policies, None
        while True:
            try:
                found = await self._calls.wait(policies.wait, newest, POLICY_WAIT_SECONDS)
            except (BrokerUnavailable, BrokerRefused):
                self._metrics.count_broker_error()
                await asyncio.sleep(POLICY_WAIT_SECONDS)
                continue
            if found is not None:
                newest = found
                yield found

    def stop_granting(self) -> None:
        """From now on nobody is given a prompt."""
        if self._parts is not None:
            self._parts.work.stop_granting()

    async def close(self) -> None:
        """Ends what still waits."""
        for queue in self._queues.values():
            await queue.close()
        if self._parts is not None:
            await self._parts.work.close()

    async def _submit_leased(
        self, producer: Producer, group: rollout_pb2.RolloutGroup, lease_token: str
    ) -> Answer:
        work = self.parts.work
        lease = await work.lease_of(producer, lease_token)
        if lease is None:
            return self._ended(producer, "lease_lost", group.group_id)
        try:
            if group.group_id and group.group_id != lease.group_id:
                raise InvalidRecord(f"group_id is {group.group_id[:80]!r}, the lease is for {lease.group_id}")
            group.group_id = lease.group_id
            check_group(group, limits=self._limits)
        except InvalidRecord as error:
            return self.refuse(producer, group.group_id, str(error))
        outcome = await work.append(producer, lease, group.SerializeToString(deterministic=True))
        return self._ended(producer, outcome, lease.group_id)

    def _ended(self, producer: Producer, outcome: str, group_id: str) -> Answer:
        self._metrics.count_group(producer.name, outcome)
        return Answer(outcome=outcome, group_id=group_id[:128], reason=_WHY.get(outcome, ""))

    def _queue(self, producer: Producer, parts: JoinedParts) -> ProducerQueue:
        queue = self._queues.get(producer.name)
        if queue is None:
            queue = self._queues[producer.name] = ProducerQueue(
                producer=producer,
                run_log=parts.run_log,
                run_id=parts.run_id,
                calls=self._calls,
                metrics=self._metrics,
                capacity=parts.config.capacity,
                max_queued=self._max_queued,
            )
        return queue


def answer_of(submitted: Submitted, group_id: str) -> Answer:
    """As the callers of this gateway see it."""
    return Answer(outcome=submitted.outcome.value, group_id=group_id, reason=_WHY.get(submitted.outcome, ""))
