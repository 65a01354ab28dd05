"""Finished groups over gRPC: how many a second, who is at the limit, how long one takes at half of that."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from asympo.bench.gateway.services import GatewayServices
from asympo.bench.log_round import percentiles
from asympo.client import AsyncClient, FinishReason, Prompt, Response, RolloutGroup, text_group
from asympo.common.errors import NoProgress

_BYTES = 16 * 1024
_NUM_RESPONSES = 3
_NUM_AT_ONCE = 64
_LEAD_SECONDS = 1.0
_BUSY = 0.85
"""Of one second of CPU: from here on a process counts as at its limit."""

MakeGroup = Callable[[int], RolloutGroup]


def text_of_16k(number: int) -> RolloutGroup:
    """A prompt and three responses of 4 KB of text."""
    text = "x" * (_BYTES // (_NUM_RESPONSES + 1))
    return text_group(text, [(text, float(place)) for place in range(_NUM_RESPONSES)], group_id=str(number))


def ids_of_16k(number: int) -> RolloutGroup:
    """A prompt and three responses of 2,048 token ids, two bytes each on the wire."""
    ids = tuple(range(1000, 1000 + _BYTES // 2 // (_NUM_RESPONSES + 1)))
    responses = [
        Response(token_ids=ids, reward=float(place), finish_reason=FinishReason.STOP)
        for place in range(_NUM_RESPONSES)
    ]
    return RolloutGroup(group_id=str(number), prompt=Prompt(token_ids=ids), responses=tuple(responses))


async def _stream(address: str, groups: Sequence[RolloutGroup]) -> None:
    async with AsyncClient(address) as client:
        refused = await client.submit_many(groups)
    if refused:
        raise NoProgress(f"{len(refused)} of {len(groups)} groups were refused ({refused[0].outcome})")


async def _singly(address: str, groups: Sequence[RolloutGroup]) -> None:
    """One call for each, some at a time."""
    waiting = iter(groups)
    async with AsyncClient(address) as client:

        async def submit() -> None:
            for group in waiting:
                await client.submit(group)

        await asyncio.gather(*(submit() for _ in range(_NUM_AT_ONCE)))


def measure_rate(
    running: GatewayServices, make: MakeGroup, *, first: int, count: int, is_stream: bool
) -> dict[str, Any]:
    """One client with `count` groups, in one stream or one call each."""
    groups = [make(first + number) for number in range(count)]
    before, start = running.cpu_seconds(), time.perf_counter()
    asyncio.run((_stream if is_stream else _singly)(running.grpc, groups))
    taken = time.perf_counter() - start
    cpu = {name: seconds - before[name] for name, seconds in running.cpu_seconds().items()}
    busy = {name: seconds / taken for name, seconds in cpu.items()}
    busiest = max(busy, key=lambda name: busy[name])
    return {
        "groups_per_second": count / taken,
        "groups_per_second_of_gateway_core": count / cpu["gateway"],
        "saturated_by": busiest if busy[busiest] >= _BUSY else "nobody: others held the cores",
        "busy_ratio": busy,
        "num_groups": count,
    }


def measure_latency(
    running: GatewayServices, make: MakeGroup, *, rate: float, first: int, seconds: float
) -> dict[str, float]:
    """Single groups at a fixed pace, each timed from the moment at which it was due."""
    return percentiles(asyncio.run(_paced(running.grpc, make, rate=rate, first=first, seconds=seconds)))


async def _paced(address: str, make: MakeGroup, *, rate: float, first: int, seconds: float) -> list[float]:
    groups = [make(first + number) for number in range(max(10, int(rate * seconds)))]
    async with AsyncClient(address) as client:
        await client.submit(make(first + len(groups)))  # the connection stands
        # Once every task below exists: what making them takes is no latency of the gateway's.
        start = time.perf_counter() + _LEAD_SECONDS

        async def submit(number: int) -> float:
            due = start + number / rate
            await asyncio.sleep(due - time.perf_counter())
            await client.submit(groups[number])
            return time.perf_counter() - due

        return list(await asyncio.gather(*(submit(number) for number in range(len(groups)))))
