"""What the gateway adds to an agent's request, and what becomes of sessions when generators are killed."""

import asyncio
import itertools
import random
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import aiohttp
import psutil

from asympo.bench.gateway.services import GROUP_SIZE, GatewayServices, gateway_cores, stub, wait_for_answer
from asympo.common.records import RolloutGroup
from asympo.local.ports import free_port
from asympo.local.process import Process

NUM_CLIENTS = 32
NUM_ROUNDS = 8
"""Of requests on each way, one way after the other."""
NUM_TURNS = 5
MAX_TRIES = 200
"""Of one request of an agent while generators die."""
_QUESTION = {"model": "policy", "messages": [{"role": "user", "content": "x" * 2000}]}
_NAMED_END = {"appended", "not_enough", "no_capacity", "invalid"}
"""How a group of sessions may end: each tells what became of it."""


def measure_overhead(running: GatewayServices, *, num_requests: int) -> dict[str, float]:
    """Milliseconds of a request: straight to the engine, through the gateway, through a bare proxy.

    The median that an agent waits, and what the gateway's and the proxy's processes compute for each.
    """
    port = free_port()
    log_path = running.directory / "proxy.log"
    # On the gateway's core: neither has more of the machine than the other.
    passing = stub("proxy", port, running.doors[0], log_path=log_path, cores=gateway_cores()).start()
    try:
        wait_for_answer(passing, f"http://127.0.0.1:{port}/v1")
        return asyncio.run(_overhead(running, passing, f"http://127.0.0.1:{port}/v1", num_requests))
    finally:
        passing.kill()


async def _overhead(
    running: GatewayServices, passing: Process, proxy: str, num_requests: int
) -> dict[str, float]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        found: dict[str, float] = {}
        processes = {"gateway": psutil.Process(running.gateway.pid), "proxy": psutil.Process(passing.pid)}
        for num_clients in (1, NUM_CLIENTS):
            sessions = await _sessions(http, running, -(-num_clients // GROUP_SIZE))
            addresses = {
                "straight": [running.doors[0]] * num_clients,
                "gateway": [each["base_url"] for each in sessions[:num_clients]],
                "proxy": [proxy] * num_clients,
            }
            times: dict[str, list[float]] = {name: [] for name in addresses}
            computed = dict.fromkeys(processes, 0.0)
            # In turns, so that what else the machine does falls on all alike; the first turn warms up.
            for turn in range(1 + NUM_ROUNDS):
                for name, bases in addresses.items():
                    each = max(2, num_requests // num_clients // NUM_ROUNDS)
                    before = _cpu_seconds(processes.get(name))
                    asked = await asyncio.gather(*(_ask_often(http, base, each) for base in bases))
                    if turn:
                        times[name] += itertools.chain(*asked)
                    if turn and name in computed:
                        computed[name] += _cpu_seconds(processes.get(name)) - before
            for name, seconds in times.items():
                found[f"{name}_milliseconds_p50_with_{num_clients}"] = statistics.median(seconds) * 1000
                if name in processes:
                    found[f"{name}_cpu_milliseconds_with_{num_clients}"] = (
                        computed[name] / len(seconds) * 1000
                    )
        return found


def _cpu_seconds(process: psutil.Process | None) -> float:
    return sum(process.cpu_times()[:2]) if process else 0.0


async def _ask_often(http: aiohttp.ClientSession, base: str, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        async with http.post(f"{base}/chat/completions", json=_QUESTION) as answer:
            answer.raise_for_status()
            await answer.read()
        seconds.append(time.perf_counter() - start)
    return seconds


async def _sessions(
    http: aiohttp.ClientSession, running: GatewayServices, num_groups: int
) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for _ in range(num_groups):
        body = {"own_prompt": True, "num_sessions": GROUP_SIZE}
        async with http.post(f"{running.http}/rl/start_session", json=body) as answer:
            answer.raise_for_status()
            found += (await answer.json())["sessions"]
    return found


def measure_sessions(running: GatewayServices, *, num_sessions: int, seed: int) -> dict[str, Any]:
    """Agents of five turns while generators die and come back; what became of every session."""
    outcomes = asyncio.run(_chaos(running, num_sessions // GROUP_SIZE, random.Random(seed)))
    logged = Counter(question_of(group) for group in running.groups())
    lost = sum(GROUP_SIZE for number, end in enumerate(outcomes["ends"]) if _is_lost(end, logged[number]))
    return {
        "sessions_lost": lost,
        "num_sessions": len(outcomes["ends"]) * GROUP_SIZE,
        "groups_appended": outcomes["ends"].count("appended"),
        "groups_appended_twice": sum(count > 1 for count in logged.values()),
        "generators_killed": outcomes["kills"],
        "requests_sent_again": outcomes["again"],
    }


def question_of(group: RolloutGroup) -> int:
    """Number of the group that a record is of, by the question that its sessions were asked."""
    match = re.match(rb"question (\d+)\n", bytes(group.prompt.token_ids))
    if match is None:
        return -1
    whole = sum(map(len, (response.token_ids for response in group.responses)))
    turns = b"".join(bytes(response.token_ids) for response in group.responses).count(b"answer ")
    return int(match[1]) if whole and turns == NUM_TURNS * len(group.responses) else -1


def _is_lost(end: str, num_logged: int) -> bool:
    return num_logged != (end == "appended") or end not in _NAMED_END


async def _chaos(running: GatewayServices, num_groups: int, dice: random.Random) -> dict[str, Any]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        sessions = await _sessions(http, running, num_groups)
        counts: Counter[str] = Counter()
        killing = asyncio.ensure_future(_kill_engines(running, counts, dice))
        try:
            agents = (
                _agent(http, running, session, place // GROUP_SIZE, counts)
                for place, session in enumerate(sessions)
            )
            await asyncio.gather(*agents)
        finally:
            killing.cancel()
        ends = [await _end_of(http, running, each) for each in sessions[::GROUP_SIZE]]
        return {"ends": ends, "kills": counts["kills"], "again": counts["again"]}


async def _kill_engines(running: GatewayServices, counts: Counter[str], dice: random.Random) -> None:
    while True:
        await asyncio.sleep(dice.uniform(0.05, 0.5))
        engine = dice.choice(running.engines)
        engine.end(signal.SIGKILL)
        counts["kills"] += 1
        await asyncio.sleep(dice.uniform(0.0, 0.5))
        engine.start()


async def _agent(
    http: aiohttp.ClientSession,
    running: GatewayServices,
    session: dict[str, str],
    number: int,
    counts: Counter[str],
) -> None:
    """Five turns, each sent again until it is answered, and a reward."""
    messages = [{"role": "user", "content": f"question {number}"}]
    for turn in range(NUM_TURNS):
        said = await _answer(http, session["base_url"], messages, counts)
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": f"heard {turn}"}]
    body = {"reward": float(random.random() < 0.5)}
    async with http.post(f"{running.http}/sessions/{session['session_id']}/complete", json=body) as answer:
        answer.raise_for_status()


async def _answer(
    http: aiohttp.ClientSession, base: str, messages: Sequence[dict[str, str]], counts: Counter[str]
) -> str:
    for _ in range(MAX_TRIES):
        async with http.post(f"{base}/chat/completions", json={"messages": messages}) as answer:
            if answer.status == 200:
                choice: str = (await answer.json())["choices"][0]["message"]["content"]
                return choice
            if answer.status != 503:
                answer.raise_for_status()
        counts["again"] += 1
        await asyncio.sleep(0.1)
    raise TimeoutError(f"no generator answered a session {MAX_TRIES} times")


async def _end_of(http: aiohttp.ClientSession, running: GatewayServices, session: dict[str, str]) -> str:
    for _ in range(600):
        async with http.get(f"{running.http}/sessions/{session['session_id']}") as answer:
            outcome: str = (await answer.json())["group"]["outcome"]
        if outcome != "open":
            return outcome
        await asyncio.sleep(0.1)
    return "open"
