"""Groups of an asynchronous source: none waits for the next one, and no error waits for it either."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from asympo.client import Outcome, RolloutGroup, text_group
from asympo.client.outbox import send_all
from asympo.common.errors import NoProgress


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

    asyncio.run(submit())
    assert batches == [["0", "1", "2"], ["3", "4"], ["5"]]


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
        asyncio.run(submit())
