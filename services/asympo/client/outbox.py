"""Groups of `submit_many` on their way: sent some at a time, and none kept back for long."""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from asympo.client.ways import Outcome, each, refusal
from asympo.common.errors import InvalidRecord
from asympo.common.records import RolloutGroup

MAX_BATCH_BYTES = 8 * 2**20
"""Of what is sent at once, unless it is one group."""
BATCH_SECONDS = 1.0
"""So long a group waits for others."""
_MAX_TOLD = 10
"""Groups that an error names."""
T = TypeVar("T")


async def send_all(
    groups: Iterable[RolloutGroup] | AsyncIterable[RolloutGroup],
    *,
    encode: Callable[[RolloutGroup], T],
    send: Callable[[list[T]], Awaitable[list[Outcome]]],
    num_bytes: Callable[[T], int],
    max_groups: int,
) -> list[Outcome]:
    """Sends every group, and returns the outcomes of those that were not taken.

    `encode` raises InvalidRecord for a group that cannot be sent, and the others go on. If the source raises,
    the groups that it gave are sent first; the error's notes then name those that were not taken.
    """
    error: Exception | None = None
    outbox = _Outbox(encode, send, num_bytes=num_bytes, max_groups=max_groups)
    try:
        async with asyncio.TaskGroup() as tasks:
            in_time = tasks.create_task(outbox.send_in_time())
            try:
                async for group in each(groups):
                    await outbox.add(group)
            except Exception:  # of the source, whatever it is: what it gave before is sent first
                await outbox.flush()
                raise
            await outbox.flush()
            in_time.cancel()
    except ExceptionGroup as several:
        error = several.exceptions[0]
    if error is None:
        return outbox.refused
    if outbox.refused:
        error.add_note(_told(outbox.refused))
    raise error


class _Outbox(Generic[T]):
    """The groups that are sent next, and the outcomes so far."""

    def __init__(
        self,
        encode: Callable[[RolloutGroup], T],
        send: Callable[[list[T]], Awaitable[list[Outcome]]],
        *,
        num_bytes: Callable[[T], int],
        max_groups: int,
    ) -> None:
        self._encode, self._send = encode, send
        self._num_bytes, self._max_groups = num_bytes, max_groups
        self._batch: list[T] = []
        self._size = 0
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        # Held while a batch is sent: they go one after the other.
        self._lock = asyncio.Lock()
        self.refused: list[Outcome] = []

    async def add(self, group: RolloutGroup) -> None:
        """Returns when there is room for the next group."""
        try:
            encoded = self._encode(group)
        except InvalidRecord as error:
            self.refused.append(refusal(group, error))
            return
        size = self._num_bytes(encoded)
        async with self._lock:
            if self._batch and self._size + size > MAX_BATCH_BYTES:
                await self._send_batch()
            self._batch.append(encoded)
            self._size += size
            # A source that blocks the loop leaves no turn to `send_in_time`.
            if self._seconds_left() <= 0 or len(self._batch) == self._max_groups:
                await self._send_batch()

    async def flush(self) -> None:
        """Sends what is there."""
        async with self._lock:
            if self._batch:
                await self._send_batch()

    async def send_in_time(self) -> None:
        """Until it is cancelled: sends what waits for a source that gives nothing."""
        while True:
            # What comes after that is sent when it is added.
            seconds_left = self._seconds_left()
            await asyncio.sleep(seconds_left if seconds_left > 0 else BATCH_SECONDS)
            async with self._lock:
                if self._batch and self._seconds_left() <= 0:
                    await self._send_batch()

    def _seconds_left(self) -> float:
        """Until what is there is sent, even if it is little."""
        return self._sent_at + BATCH_SECONDS - self._loop.time()

    async def _send_batch(self) -> None:
        """Under the lock."""
        batch, self._batch, self._size = self._batch, [], 0
        self.refused += [answer for answer in await self._send(batch) if not answer.is_in_log]
        self._sent_at = self._loop.time()


def _told(refused: list[Outcome]) -> str:
    named = [f"{each.group_id}: {each.outcome} {each.reason}".rstrip() for each in refused[:_MAX_TOLD]]
    more = [f"and {len(refused) - _MAX_TOLD} more"] if len(refused) > _MAX_TOLD else []
    return "Not taken before that: " + "; ".join([*named, *more])
