"""One round of the log benchmark: generators and a learner for some seconds, and the broker's own account."""

import multiprocessing
import statistics
import time
from ctypes import c_longlong
from dataclasses import dataclass
from typing import Any

import psutil

from asympo.bench.log_load import LoadProcess, LoadResult, LogLoad, Shared
from asympo.bench.log_reader import ReaderResult, read_bare, read_product
from asympo.bench.log_wire import load_scripts
from asympo.common.rollout_log import Broker, RunConfig, RunLog

_WARM_UP_SECONDS = 0.3
_JOIN_SECONDS = 30.0
_fork = multiprocessing.get_context("fork")


@dataclass(frozen=True, kw_only=True)
class Round:
    """What is measured."""

    url: str
    run: str
    """Name of the round's own run; deleted after it."""
    is_bare: bool
    num_generators: int
    payload_bytes: int
    work_seconds: float
    seconds: float
    groups_per_step: int
    max_staleness: int
    num_client_processes: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """Figures of the measured seconds."""

    groups_per_second: float
    server_cpu_seconds_per_group: float
    """User and system time of the whole server process, from INFO."""
    server_script_seconds_per_group: float
    """Spent in scripts, the learner's included, from INFO's account of EVALSHA."""
    commands_per_group: float
    """All commands the broker processed, those inside scripts included, from INFO."""
    generator_commands_per_group: float
    """Script calls of the generators, from INFO's count of EVALSHA less the learner's own."""
    server_busy_ratio: float
    """CPU seconds of the server's main thread in one second."""
    client_busy_ratio: float
    """CPU seconds of the busiest client process in one second."""
    machine_busy_ratio: float
    """Share of all cores in use, by whomever."""
    refusals_per_group: float
    lease_seconds: list[float]
    append_seconds: list[float]
    read_seconds: list[float]


def run_round(asked: Round) -> RoundResult:
    """Runs it; raises RuntimeError when a client process ends early."""
    config = RunConfig(
        run=asked.run,
        group_size=2,
        groups_per_step=asked.groups_per_step,
        max_groups_per_step=asked.groups_per_step,
        max_staleness=asked.max_staleness,
        num_prompts=100_000,
        model="bench",
    )
    broker = Broker.connect(asked.url)
    run_log = RunLog(broker, asked.run)
    load_scripts(broker)
    if not asked.is_bare:
        run_log.state.create_or_join(config)
    shared = Shared(
        stop=_fork.Event(),
        sent=_fork.Value(c_longlong, 0),
        consumed=_fork.Value(c_longlong, 0),
        reader_calls=_fork.Value(c_longlong, 0),
    )
    results: Any = _fork.SimpleQueue()
    processes = _processes(asked, config, shared, results)
    for process in processes:
        process.start()
    try:
        _until_groups_flow(shared, processes)
        time.sleep(_WARM_UP_SECONDS)
        first = _snapshot(broker, shared)
        time.sleep(asked.seconds)
        last = _snapshot(broker, shared)
        shared.stop.set()
        found = [_next_result(results, processes) for _ in processes]
    finally:
        shared.stop.set()
        for process in processes:
            process.join(_JOIN_SECONDS)
            if process.is_alive():
                process.kill()
        run_log.state.delete()
        broker.close()
    return _result(found, {name: last[name] - first[name] for name in last})


def _processes(asked: Round, config: RunConfig, shared: Shared, results: Any) -> list[Any]:
    num_processes = min(asked.num_client_processes, asked.num_generators)
    share = [len(range(place, asked.num_generators, num_processes)) for place in range(num_processes)]
    loads = [
        LogLoad(
            url=asked.url,
            run=asked.run,
            is_bare=asked.is_bare,
            num_generators=count,
            payload_bytes=asked.payload_bytes,
            work_seconds=asked.work_seconds,
            capacity=config.capacity,
            seed=asked.seed * 1000 + place,
        )
        for place, count in enumerate(share)
    ]
    reader = _fork.Process(target=_read, args=(asked, config, shared, results), daemon=True)
    return [
        reader,
        *(_fork.Process(target=_load, args=(load, shared, results), daemon=True) for load in loads),
    ]


def _read(asked: Round, config: RunConfig, shared: Shared, results: Any) -> None:
    results.put((read_bare if asked.is_bare else read_product)(asked.url, config, shared))


def _load(load: LogLoad, shared: Shared, results: Any) -> None:
    results.put(LoadProcess(load, shared).run())


def _until_groups_flow(shared: Shared, processes: list[Any]) -> None:
    deadline = time.monotonic() + _JOIN_SECONDS
    while not shared.consumed.value:
        if time.monotonic() > deadline or not all(process.is_alive() for process in processes):
            raise RuntimeError("no group came through: the measurement is void")
        time.sleep(0.01)


def _next_result(results: Any, processes: list[Any]) -> LoadResult | ReaderResult:
    deadline = time.monotonic() + _JOIN_SECONDS
    while results.empty():
        if time.monotonic() > deadline or any(process.exitcode for process in processes):
            raise RuntimeError("a client of the benchmark failed: the measurement is void")
        time.sleep(0.01)
    found: LoadResult | ReaderResult = results.get()
    return found


def _snapshot(broker: Broker, shared: Shared) -> dict[str, float]:
    """Every counter of this instant."""
    machine = psutil.cpu_times()
    return {
        **broker.load_counters(),
        "groups": float(shared.consumed.value),
        "reader_calls": float(shared.reader_calls.value),
        "seconds": time.perf_counter(),
        "idle_seconds": machine.idle,
        "machine_seconds": sum(machine),
    }


def _result(found: list[Any], delta: dict[str, float]) -> RoundResult:
    taken, num_groups = delta["seconds"], max(1.0, delta["groups"])
    readers = [item for item in found if isinstance(item, ReaderResult)]
    loads = [item for item in found if isinstance(item, LoadResult)]
    total = max(1, sum(item.num_groups for item in loads))
    cpu = delta["used_cpu_user"] + delta["used_cpu_sys"]
    main = delta["used_cpu_user_main_thread"] + delta["used_cpu_sys_main_thread"]
    return RoundResult(
        groups_per_second=num_groups / taken,
        server_cpu_seconds_per_group=cpu / num_groups,
        server_script_seconds_per_group=delta["evalsha_microseconds"] / 1e6 / num_groups,
        commands_per_group=delta["total_commands_processed"] / num_groups,
        generator_commands_per_group=(delta["evalsha_calls"] - delta["reader_calls"]) / num_groups,
        server_busy_ratio=main / taken,
        client_busy_ratio=max(item.cpu_seconds / max(item.wall_seconds, 1e-9) for item in found),
        machine_busy_ratio=1 - delta["idle_seconds"] / max(delta["machine_seconds"], 1e-9),
        refusals_per_group=sum(item.num_refusals for item in loads) / total,
        lease_seconds=[value for item in loads for value in item.lease_seconds],
        append_seconds=[value for item in loads for value in item.append_seconds],
        read_seconds=[value for item in readers for value in item.read_seconds],
    )


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds; empty for no values."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{place}": cuts[place - 1] * 1000 for place in (50, 90, 99)}
