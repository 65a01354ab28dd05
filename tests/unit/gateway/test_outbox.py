"""Groups of an asynchronous source: none waits for the next one, and no error waits for it either."""

import asyncio
import selectors
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

import pytest
from asympo.client import Outcome, RolloutGroup, text_group
from asympo.client.outbox import send_all
from asympo.common.errors import NoProgress

T = TypeVar("T")


class SkippedTime(selectors.DefaultSelector):
    """Where a loop would wait for a time, it is that time."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0 if timeout else timeout)


def run(submitting: Coroutine[Any, Any, T]) -> T:
    time = SkippedTime()

    def loop_of_skipped_time() -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop(time)
        loop.time = lambda: time.now  # type: ignore[method-assign]
        return loop

    with asyncio.Runner(loop_factory=loop_of_skipped_time) as runner:
        return runner.run(submitting)


def id_of(group: RolloutGroup) -> str:
    return group.group_id


def group_of(number: int) -> RolloutGroup:
    return text_group("?", [("a", 1.0), ("b", 0.0)], group_id=number)


def test_batch_is_full_or_goes_when_its_source_gives_nothing() -> None:
    batches: list[list[str]] = []

    async def submit() -> None:
        was_sent = asyncio.Event()

        async def groups() -> AsyncIterator[RolloutGroup]:
            for number in range(5):
                yield group_of(number)
            async with asyncio.timeout(20):
                await was_sent.wait()
            yield group_of(5)

        async def send(batch: list[str]) -> list[Outcome]:
            batches.append(batch)
            if len(batches) == 2:
                was_sent.set()
            return []

        assert await send_all(groups(), encode=id_of, send=send, num_bytes=len, max_groups=3) == []

    run(submit())
    assert batches == [["0", "1", "2"], ["3", "4"], ["5"]]


def test_source_that_fills_a_batch_in_time_gets_full_ones() -> None:
    sent: list[int] = []

    async def groups() -> AsyncIterator[RolloutGroup]:
        for number in range(200):
            await asyncio.sleep(0.018)
            yield group_of(number)

    async def send(batch: list[str]) -> list[Outcome]:
        sent.append(len(batch))
        return []

    run(send_all(groups(), encode=id_of, send=send, num_bytes=len, max_groups=50))
    assert sent == [50] * 4


def test_error_of_sending_ends_a_source_that_gives_nothing() -> None:
    async def submit() -> None:
        async def groups() -> AsyncIterator[RolloutGroup]:
            yield group_of(1)
            await asyncio.Event().wait()

        async def send(batch: list[str]) -> list[Outcome]:
            raise NoProgress("nobody takes it")

        async with asyncio.timeout(20):
            await send_all(groups(), encode=id_of, send=send, num_bytes=len, max_groups=3)

    with pytest.raises(NoProgress, match="nobody takes it"):
        run(submit())
