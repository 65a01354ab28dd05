"""Requests that nobody should send, at every door: a gateway refuses each and goes on."""

import asyncio
import json
import random
from collections import Counter
from typing import Any

import aiohttp
import grpc
import psutil

from asympo.bench.gateway.ingest import text_of_16k
from asympo.bench.gateway.services import GatewayServices
from asympo.client import AsyncClient
from asympo.common.codec import to_message
from asympo.v1 import rollout_ingest_service_pb2 as messages

_NUM_AT_ONCE = 32
_PATHS = (
    "/v1/rollouts",
    "/v1/work",
    "/v1/work/renew",
    "/rl/start_session",
    "/rl/set_reward",
    "/sessions/x/complete",
)
_CRASHES = ("http 500", "http gone", "grpc UNKNOWN", "grpc INTERNAL")
"""Answers of a program that did not foresee what it was given."""
_METHODS = ("Submit", "SubmitMany", "GetWork", "RenewWork")
_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1e308,
    "",
    "\ud800",
    [],
    {},
    [[]] * 50,
    "x" * 5000,
    {"a": {}},
)


def measure_malformed(running: GatewayServices, *, count: int, seed: int) -> dict[str, Any]:
    """Half over HTTP, half over gRPC; what came back, and whether the gateway still works."""
    process, dice = psutil.Process(running.gateway.pid), random.Random(seed)
    # What is loaded at the first request of a kind is no leak.
    answers = asyncio.run(_send(running, count // 4, dice))
    before = process.memory_info().rss
    answers += asyncio.run(_send(running, count - count // 4, dice))
    crashes = sum(number for name, number in answers.items() if name in _CRASHES)
    crashes += not running.gateway.is_running
    return {
        "malformed_crashes": crashes,
        "num_requests": count,
        "answers": dict(sorted(answers.items())),
        "memory_growth_megabytes": (process.memory_info().rss - before) / 2**20,
    }


async def _send(running: GatewayServices, count: int, dice: random.Random) -> Counter[str]:
    answers: Counter[str] = Counter()
    target = running.grpc.removeprefix("grpc://")
    async with aiohttp.ClientSession() as http, grpc.aio.insecure_channel(target) as channel:

        async def send_some(number: int) -> None:
            for _ in range(number):
                over = _over_http(http, running, dice) if dice.random() < 0.5 else _over_grpc(channel, dice)
                answers[await over] += 1

        share = [len(range(place, count, _NUM_AT_ONCE)) for place in range(_NUM_AT_ONCE)]
        await asyncio.gather(*map(send_some, share))
    async with AsyncClient(running.grpc, max_wait_seconds=30) as client:
        answers[f"afterwards {(await client.submit(text_of_16k(2**40 + count))).outcome}"] += 1
    return answers


async def _over_http(http: aiohttp.ClientSession, running: GatewayServices, dice: random.Random) -> str:
    body = json.dumps(_spoilt(_valid(), dice)).encode()
    if dice.random() < 0.3:
        body = _flipped(body, dice)
    try:
        async with http.post(running.http + dice.choice(_PATHS), data=body) as answer:
            await answer.read()
            return f"http {answer.status}"
    except aiohttp.ClientError:
        return "http gone"


async def _over_grpc(channel: grpc.aio.Channel, dice: random.Random) -> str:
    path = f"/asympo.v1.RolloutIngestService/{dice.choice(_METHODS)}"
    valid = messages.RolloutIngestServiceSubmitRequest(group=to_message(text_of_16k(1))).SerializeToString()
    body = _flipped(valid, dice)[: dice.choice((40, 200, len(valid)))]
    try:
        if path.endswith("SubmitMany"):
            await channel.stream_unary(path)(iter([body]))
        else:
            await channel.unary_unary(path)(body)
    except grpc.aio.AioRpcError as error:
        return f"grpc {error.code().name}"
    return "grpc OK"


def _valid() -> dict[str, Any]:
    responses = [
        {"text": "a", "reward": 1.0},
        {"token_ids": [1, 2], "reward": 0.0, "trained_token_mask": [True, False]},
        {"segments": [{"token_ids": [1]}, {"context_ids": [2], "token_ids": [3]}], "reward": 0.5},
    ]
    return {
        "group_id": "1",
        "prompt": {"text": "?"},
        "responses": responses,
        "session_id": "x",
        "reward": 1.0,
    }


def _spoilt(body: dict[str, Any], dice: random.Random) -> Any:
    """With a value of another kind somewhere."""
    place: Any = body
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = dice.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and dice.random() < 0.7:
            place = place[key]
            continue
        place[key] = dice.choice(_VALUES)
        return body


def _flipped(body: bytes, dice: random.Random) -> bytes:
    spoilt = bytearray(body)
    for _ in range(dice.randint(1, 8)):
        spoilt[dice.randrange(len(spoilt))] = dice.randrange(256)
    return bytes(spoilt)
