"""Groups on their way into the log: one queue for each producer, many groups a script call."""

import asyncio
import logging
import math
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from asympo.common.errors import AsympoError, BrokerUnavailable
from asympo.common.rollout_log import Refused, RunLog, Submission, SubmitOutcome, Submitted
from asympo.common.rollout_log.broker.calls import Backoff, Calls
from asympo.gateway.metrics import GatewayMetrics
from asympo.gateway.producers import Producer, RateLimit

log = logging.getLogger(__name__)

MAX_BATCH_GROUPS = 64
MAX_BATCH_BYTES = 4 * 2**20
"""Of one script call, which blocks the whole broker."""
MAX_WAIT_SECONDS = 2.0
"""Longest single wait for a slot: whoever asked for less is answered between two."""

_FULL = Submitted(outcome=SubmitOutcome.NO_CAPACITY, sequence=None)
_Refusal = Submitted | AsympoError
"""Why a group was not taken: as the broker says, or what it raised when it was asked."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """One submission that has no answer yet."""

    submission: Submission
    answer: "asyncio.Future[Submitted]"
    deadline: float | None
    """Of time.monotonic(); None waits as long as the caller does."""
    last: _Refusal | None = None
    """Why it was not taken when last asked."""
    since: float = field(default_factory=time.monotonic)


class ProducerQueue:
    """What one producer has submitted, in order. Belongs to one event loop."""

    def __init__(
        self,
        *,
        producer: Producer,
        run_log: RunLog,
        run_id: str,
        calls: Calls,
        metrics: GatewayMetrics,
        capacity: int,
        max_queued: int,
    ) -> None:
        self._producer = producer
        self._run_log, self._run_id = run_log, run_id
        self._calls = calls
        self._metrics = metrics
        self._max_slots = producer.max_slots(capacity)
        self._limit = RateLimit(producer.groups_per_minute)
        self._room = asyncio.Semaphore(max_queued)
        self._refusal: _Refusal = _FULL
        """Of whoever was not taken last."""
        self._asked_at = math.inf
        """When the call that the broker has not answered yet began."""
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._worker = asyncio.ensure_future(self._work())

    async def put(self, submission: Submission, *, wait_seconds: float | None) -> "asyncio.Future[Submitted]":
        """Takes one submission as soon as there is room for it; what becomes of it is the future's."""
        deadline = None if wait_seconds is None else time.monotonic() + wait_seconds
        answer: asyncio.Future[Submitted] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(submission=submission, answer=answer, deadline=deadline)
        try:
            async with asyncio.timeout(wait_seconds):
                await self._room.acquire()
        except TimeoutError:
            is_silent = self._asked_at <= waiting.since
            silence = BrokerUnavailable("the broker has not answered for as long as this group waits")
            self._answer(waiting, silence if is_silent else self._refusal)
            return answer
        answer.add_done_callback(lambda _: self._leave())
        self._waiting.append(waiting)
        self._metrics.queued_groups.inc()
        self._arrived.set()
        return answer

    async def close(self) -> None:
        """Ends what still waits: its callers send it again, to another gateway."""
        self._worker.cancel()
        await asyncio.wait({self._worker})
        for waiting in tuple(self._waiting):
            waiting.answer.cancel()

    def _leave(self) -> None:
        self._room.release()
        self._metrics.queued_groups.dec()

    async def _work(self) -> None:
        backoff = Backoff()
        while True:
            self._drop_done()
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            batch = self._next_batch()
            if not batch:
                await asyncio.sleep(min(MAX_WAIT_SECONDS, self._limit.wait_seconds))
                continue
            try:
                answers, refused = await self._submit(batch)
                if not self._settle(batch, answers):
                    await self._wait_for_slot(refused)
                backoff = Backoff()
            except AsympoError as error:
                # One that turns us away, too: its users may be put right while we wait.
                self._metrics.count_broker_error()
                log.warning("Groups of %s wait for the broker: %s", self._producer.name, error)
                self._refuse_from(0, error)
                self._drop_done()
                await asyncio.sleep(backoff.next_seconds())

    def _drop_done(self) -> None:
        """Forget what was answered or given up, and answer what has waited long enough."""
        now = time.monotonic()
        for waiting in self._waiting:
            is_late = waiting.deadline is not None and now >= waiting.deadline
            if is_late and waiting.last is not None and not waiting.answer.done():
                self._answer(waiting, waiting.last)
        self._waiting = deque(waiting for waiting in self._waiting if not waiting.answer.done())

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        num_bytes = 0
        for waiting in self._waiting:
            num_bytes += len(waiting.submission.payload)
            if batch and (len(batch) == MAX_BATCH_GROUPS or num_bytes > MAX_BATCH_BYTES):
                break
            batch.append(waiting)
        allowed = self._limit.take(len(batch))
        if allowed < len(batch):
            self._refuse_from(allowed, Submitted(outcome=SubmitOutcome.OVER_SHARE, sequence=None))
        return batch[:allowed]

    async def _submit(self, batch: list[_Waiting]) -> tuple[list[Submitted], Refused]:
        """One call; whatever is not final after it counts for nothing in the producer's minute."""
        num_open = len(batch)
        self._asked_at = time.monotonic()
        try:
            answers, refused = await self._calls.run(
                self._run_log.submissions.submit,
                self._producer.name,
                [waiting.submission for waiting in batch],
                max_slots=self._max_slots,
                run_id=self._run_id,
            )
            num_open = sum(not answer.outcome.is_final for answer in answers)
            return answers, refused
        finally:
            self._asked_at = math.inf
            self._limit.give_back(num_open)

    def _settle(self, batch: list[_Waiting], answers: list[Submitted]) -> bool:
        """Passes final answers on; says whether all were final."""
        refusals = [answer for answer in answers if not answer.outcome.is_final]
        self._refusal = _FULL
        for waiting, answer in zip(batch, answers, strict=True):
            if answer.outcome.is_final:
                self._answer(waiting, answer)
            else:
                waiting.last = answer
        if refusals:
            self._refuse_from(len(batch), refusals[-1])
        return not refusals

    def _refuse_from(self, place: int, refusal: _Refusal) -> None:
        """Whoever waits from this place on is not asked for before those in front are taken."""
        self._refusal = refusal
        for waiting in islice(self._waiting, place, None):
            waiting.last = refusal

    def _answer(self, waiting: _Waiting, answer: _Refusal) -> None:
        if isinstance(answer, AsympoError):
            # Nothing is known of the group: its caller sends it again.
            waiting.answer.set_exception(answer)
            return
        self._metrics.count_group(self._producer.name, answer.outcome)
        self._metrics.submit_seconds.observe(time.monotonic() - waiting.since)
        if not waiting.answer.done():
            waiting.answer.set_result(answer)

    async def _wait_for_slot(self, refused: Refused) -> None:
        now = time.monotonic()
        deadlines = [waiting.deadline for waiting in self._waiting if waiting.deadline is not None]
        left = max(0.0, min(deadlines) - now) if deadlines else MAX_WAIT_SECONDS
        await self._calls.wait(
            self._run_log.leases.wait_for_slot, min(MAX_WAIT_SECONDS, left), refused=refused
        )
