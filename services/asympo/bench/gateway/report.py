"""The whole report of `asympo bench gateway`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asympo.bench.gateway.agents import NUM_CLIENTS, measure_overhead, measure_sessions
from asympo.bench.gateway.ingest import ids_of_16k, measure_latency, measure_rate, text_of_16k
from asympo.bench.gateway.malformed import measure_malformed
from asympo.bench.gateway.services import services


@dataclass(frozen=True, kw_only=True)
class GatewayBench:
    """How much is measured."""

    num_groups: int = 4000
    """Of each stream."""
    latency_seconds: float = 5.0
    num_requests: int = 800
    """Of agents, on each way."""
    num_sessions: int = 200
    mean_delay_seconds: float = 1.0
    """Of an answer while generators die: about as long as they live, so that many are cut off."""
    num_malformed: int = 10_000
    seed: int = 0


def measure_gateway(bench: GatewayBench, *, say: Callable[[str], None]) -> dict[str, Any]:
    """The report. Raises NoProgress when a group is refused."""
    load = os.getloadavg()[0]
    with services(num_engines=1) as running:
        say("groups of 16 KB of text and of token ids in one stream, and of text one call each")
        text = measure_rate(running, text_of_16k, first=1, count=bench.num_groups, is_stream=True)
        ids = measure_rate(running, ids_of_16k, first=10**6, count=bench.num_groups, is_stream=True)
        single = measure_rate(running, text_of_16k, first=2 * 10**6, count=bench.num_groups, is_stream=False)
        say("calls at half of that rate")
        latency = measure_latency(
            running,
            text_of_16k,
            rate=single["groups_per_second"] / 2,
            first=3 * 10**6,
            seconds=bench.latency_seconds,
        )
        say("requests of agents: straight, through the gateway, through a bare proxy")
        overhead = measure_overhead(running, num_requests=bench.num_requests)
        say(f"{bench.num_malformed} malformed requests")
        malformed = measure_malformed(running, count=bench.num_malformed, seed=bench.seed)
    say(f"{bench.num_sessions} sessions while generators are killed")
    with services(num_engines=3, mean_delay_seconds=bench.mean_delay_seconds) as running:
        sessions = measure_sessions(running, num_sessions=bench.num_sessions, seed=bench.seed)
    added = {
        count: overhead[f"gateway_milliseconds_p50_with_{count}"]
        - overhead[f"straight_milliseconds_p50_with_{count}"]
        for count in (1, NUM_CLIENTS)
    }
    return {
        "load_average": load,
        "groups_per_second": text["groups_per_second"],
        "groups_per_second_token_ids": ids["groups_per_second"],
        "p99_milliseconds_half_load": latency["p99"],
        "agent_overhead_milliseconds_p50": added[1],
        f"agent_ratio_to_bare_proxy_with_{NUM_CLIENTS}": _to_proxy(overhead, "milliseconds_p50"),
        f"agent_cpu_ratio_to_bare_proxy_with_{NUM_CLIENTS}": _to_proxy(overhead, "cpu_milliseconds"),
        "sessions_lost": sessions["sessions_lost"],
        "malformed_crashes": malformed["malformed_crashes"],
        "text_16k": text,
        "token_ids_16k": ids,
        "text_16k_one_call_each": single,
        "latency_milliseconds_half_load": latency,
        "agent": overhead,
        "sessions": sessions,
        "malformed": malformed,
    }


def _to_proxy(overhead: dict[str, float], what: str) -> float:
    return overhead[f"gateway_{what}_with_{NUM_CLIENTS}"] / overhead[f"proxy_{what}_with_{NUM_CLIENTS}"]
