"""What the rollout log costs: the product's protocol against bare streams, on one broker, in turns."""

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asympo.bench.log_round import Round, RoundResult, percentiles, run_round
from asympo.bench.log_staleness import SLOW_FACTOR, SLOW_SHARE, StalenessCase, run_staleness
from asympo.common.checkpoints.digests import available_cores
from asympo.common.rollout_log import Broker
from asympo.local.broker import LocalBroker, find_broker_binary

_BUSY = 0.85
_EFFICIENT = 0.95


@dataclass(frozen=True, kw_only=True)
class LogBench:
    """How much is measured."""

    redis_url: str | None = None
    """A broker to measure; None starts one. Its appendfsync is changed and put back."""
    appendfsync: tuple[str, ...] = ("always",)
    rounds: int = 3
    """Turns of each arm."""
    seconds: float = 3.0
    """Measured in each turn."""
    num_generators: int = 64
    payload_bytes: int = 16 * 1024
    groups_per_step: int = 64
    max_staleness: int = 3
    num_client_processes: int = 2
    paced_groups_per_second: float = 400.0
    """Offered by both arms where CPU and commands are compared at equal work."""
    generator_counts: tuple[int, ...] = (1, 4, 16, 64)
    staleness_cases: tuple[tuple[int, int], ...] = ((0, 1), (1, 1), (4, 1), (0, 4), (1, 4), (4, 4))
    """(max_staleness, publish_every)."""
    work_seconds: float = 0.1
    """Of a group, where scaling is measured."""
    max_knee_rounds: int = 10


def measure_log(bench: LogBench, *, say: Callable[[str], None]) -> dict[str, Any]:
    """The report. Raises RuntimeError when a measurement is void."""
    with _broker(bench) as (url, broker):
        info = broker.info()
        report: dict[str, Any] = {"broker": f"{info.server} {info.version}"}
        for position, mode in enumerate(bench.appendfsync):
            broker.command("CONFIG SET", "appendfsync", mode)
            arms = _Arms(bench, url, say, label=f"appendfsync {mode}")
            report.update(arms.compare() if not position else {f"appendfsync_{mode}": arms.compare()})
        broker.command("CONFIG SET", "appendfsync", bench.appendfsync[0])
        arms = _Arms(bench, url, say, label="scaling")
        report["appendfsync"] = bench.appendfsync[0]
        report["commands_per_group"] = arms.commands()
        report.update(arms.scaling())
        report.update(_staleness(bench, url, say))
        report["cores"], report["load_average"] = available_cores(), os.getloadavg()[0]
        return report


@contextmanager
def _broker(bench: LogBench) -> Iterator[tuple[str, Broker]]:
    if bench.redis_url:
        broker = Broker.connect(bench.redis_url)
        before = broker.info().appendfsync
        try:
            yield bench.redis_url, broker
        finally:
            broker.command("CONFIG SET", "appendfsync", before)
            broker.close()
        return
    with tempfile.TemporaryDirectory(prefix="asympo-bench-", dir=Path.cwd()) as directory:
        data = Path(directory)
        server = LocalBroker(
            binary=find_broker_binary().path, directory=data, log_path=data / "broker.log"
        ).start()
        try:
            broker = Broker.connect(server.url)
            yield server.url, broker
            broker.close()
        finally:
            server.kill()


class _Arms:
    """Rounds of both arms on one broker."""

    def __init__(self, bench: LogBench, url: str, say: Callable[[str], None], *, label: str) -> None:
        self._bench, self._say, self._label = bench, say, label
        self._num_rounds = 0
        self._url = url

    def compare(self) -> dict[str, Any]:
        """Ratios at saturation and at equal work; medians over the rounds."""
        bench = self._bench
        paced = bench.num_generators / bench.paced_groups_per_second
        rounds: dict[str, list[RoundResult]] = {}
        for _ in range(bench.rounds):
            for name, is_bare, work in (
                ("bare", True, 0.0),
                ("product", False, 0.0),
                ("bare_paced", True, paced),
                ("product_paced", False, paced),
            ):
                found = self._round(bench.num_generators, is_bare=is_bare, work_seconds=work)
                rounds.setdefault(name, []).append(found)
        merged = {name: _merged(results) for name, results in rounds.items()}
        bare, product = merged["bare"], merged["product"]
        paced_bare, paced_product = merged["bare_paced"], merged["product_paced"]
        return {
            "throughput_ratio_to_bare": product.groups_per_second / bare.groups_per_second,
            "server_cpu_ratio_to_bare": paced_product.server_cpu_seconds_per_group
            / paced_bare.server_cpu_seconds_per_group,
            "server_cpu_ratio_to_bare_saturated": product.server_cpu_seconds_per_group
            / bare.server_cpu_seconds_per_group,
            "saturated_by": saturated_by(product),
            "bare_saturated_by": saturated_by(bare),
            "rounds": {name: _shown(result) for name, result in merged.items()},
        }

    def commands(self) -> dict[str, float]:
        """Script calls of the generators for one group, by their number, all at the same groups/s."""
        rate = self._bench.paced_groups_per_second
        return {
            str(count): self._round(count, work_seconds=count / rate).generator_commands_per_group
            for count in self._bench.generator_counts
        }

    def scaling(self) -> dict[str, Any]:
        """How far the log keeps up with generators that work: 32 of them, then ever faster ones."""
        bench = self._bench
        one = self._round(1, work_seconds=bench.work_seconds)
        many = self._round(32, work_seconds=bench.work_seconds)
        overhead = max(0.0, 1 / one.groups_per_second - bench.work_seconds)
        knee, steps, rate = many.groups_per_second, [], 1.5 * 32 / bench.work_seconds
        last = many
        for _ in range(bench.max_knee_rounds):
            work = 32 / rate
            last = self._round(32, work_seconds=work)
            # What 32 generators would do if each were alone with the broker.
            offered = 32 / (work + overhead)
            efficiency = last.groups_per_second / offered
            steps.append({"offered": offered, "achieved": last.groups_per_second, "efficiency": efficiency})
            if efficiency < _EFFICIENT:
                break
            knee, rate = last.groups_per_second, rate * 1.5
        return {
            "scaling_efficiency_32": many.groups_per_second / (32 * one.groups_per_second),
            "knee_groups_per_second": knee,
            "knee_saturated_by": saturated_by(last),
            "knee_steps": steps,
        }

    def _round(self, num_generators: int, *, work_seconds: float, is_bare: bool = False) -> RoundResult:
        bench = self._bench
        self._num_rounds += 1
        asked = Round(
            url=self._url,
            run=f"bench-{self._label.replace(' ', '-')}-{self._num_rounds}",
            is_bare=is_bare,
            num_generators=num_generators,
            payload_bytes=bench.payload_bytes,
            work_seconds=work_seconds,
            seconds=bench.seconds,
            groups_per_step=bench.groups_per_step,
            max_staleness=bench.max_staleness,
            num_client_processes=bench.num_client_processes,
            seed=self._num_rounds,
        )
        found = run_round(asked)
        self._say(
            f"{self._label}: {'bare' if is_bare else 'product'}, {num_generators} generators, "
            f"{found.groups_per_second:.0f} groups/s, "
            f"server {found.server_cpu_seconds_per_group * 1e6:.0f} us/group"
        )
        return found


def saturated_by(result: RoundResult) -> str:
    """What ran out first: a core for the server, one for a client, the whole machine; else the disk."""
    if result.server_busy_ratio > _BUSY:
        return "server CPU"
    if result.client_busy_ratio > _BUSY:
        return "client CPU"
    if result.machine_busy_ratio > _EFFICIENT:
        return "machine CPU"
    return "fsync"


def _staleness(bench: LogBench, url: str, say: Callable[[str], None]) -> dict[str, Any]:
    cases = []
    for max_staleness, publish_every in bench.staleness_cases:
        case = StalenessCase(
            url=url,
            run=f"bench-staleness-{max_staleness}-{publish_every}",
            max_staleness=max_staleness,
            publish_every=publish_every,
            seconds=bench.seconds,
        )
        found = asdict(run_staleness(case))
        found.pop("_total")
        cases.append({"max_staleness": max_staleness, "publish_every": publish_every, **found})
        say(f"staleness: {cases[-1]}")
    return {
        "max_queue_staleness_seen": max(case["max_queue_staleness_seen"] for case in cases),
        "max_queue_staleness_allowed": max(case["max_queue_staleness_allowed"] for case in cases),
        "is_queue_bound_kept": all(
            case["max_queue_staleness_seen"] <= case["max_queue_staleness_allowed"] for case in cases
        ),
        "staleness": {"slow_share": SLOW_SHARE, "slow_factor": SLOW_FACTOR, "cases": cases},
    }


def _merged(results: list[RoundResult]) -> RoundResult:
    """Medians of the figures, all samples of the latencies."""
    first, merged = results[0], dict[str, Any]()
    for name in asdict(first):
        values = [getattr(result, name) for result in results]
        is_list = isinstance(values[0], list)
        merged[name] = [item for value in values for item in value] if is_list else statistics.median(values)
    return replace(first, **merged)


def _shown(result: RoundResult) -> dict[str, Any]:
    shown: dict[str, Any] = {
        name: value for name, value in asdict(result).items() if isinstance(value, float)
    }
    for name in ("lease", "append", "read"):
        shown[f"{name}_milliseconds"] = percentiles(getattr(result, f"{name}_seconds"))
    return shown
