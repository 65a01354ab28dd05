"""`asympo bench log` on a real broker: the report holds what it says, whatever the machine's speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from asympo.bench.log import saturated_by
from asympo.bench.log_round import RoundResult, percentiles
from asympo.common.rollout_log import Broker, RunLog

from tests.integration.rollout_log.conftest import must_append, must_lease, start_run

FIGURES = dict.fromkeys(RoundResult.__dataclass_fields__, 0.0)


def test_bench_log_reports_ratios_commands_and_the_queue_bound(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asympo.cli", "bench", "log", "--quick", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["appendfsync"] == "always"
    assert report["throughput_ratio_to_bare"] > 0
    assert report["server_cpu_ratio_to_bare"] > 0
    assert report["knee_groups_per_second"] > 0
    in_scripts = {name: found["server_script_seconds_per_group"] for name, found in report["rounds"].items()}
    assert in_scripts["product"] > 1e-5 > in_scripts["bare"], "bare streams need none"
    assert report["scaling_efficiency_32"] > 0
    assert set(report["commands_per_group"]) == {"1", "64"}
    assert min(report["commands_per_group"].values()) > 0
    assert report["is_queue_bound_kept"], report["staleness"]
    assert report["max_queue_staleness_seen"] <= report["max_queue_staleness_allowed"] == 1
    latency = report["rounds"]["product_paced"]
    for name in ("lease", "append", "read"):
        percentile = latency[f"{name}_milliseconds"]
        assert 0 < percentile["p50"] <= percentile["p90"] <= percentile["p99"]
    assert not list(tmp_path.iterdir()), "the broker's files are gone"


@pytest.mark.parametrize("num_holders", [1, 16])
def test_a_group_costs_two_script_calls_however_many_generators_there_are(
    broker_url: str, run_name: str, num_holders: int
) -> None:
    broker = Broker.connect(broker_url)
    learner = start_run(RunLog(broker, run_name), groups_per_step=64, max_groups_per_step=64, num_prompts=200)
    brokers = [Broker.connect(broker_url) for _ in range(num_holders)]
    must_append(learner.log)
    before = broker.load_counters()["evalsha_calls"]
    for number in range(32):
        log = RunLog(brokers[number % num_holders], run_name)
        must_append(log, must_lease(log, holder=f"gen-{number % num_holders}"))
    assert broker.load_counters()["evalsha_calls"] - before == 64
    for one in (broker, *brokers):
        one.close()


def test_saturation_is_blamed_on_what_ran_out() -> None:
    def result(**busy: float) -> RoundResult:
        return RoundResult(**{**FIGURES, **busy})  # type: ignore[arg-type]

    assert saturated_by(result(server_busy_ratio=0.9, client_busy_ratio=0.9)) == "server CPU"
    assert saturated_by(result(client_busy_ratio=0.9)) == "client CPU"
    assert saturated_by(result(machine_busy_ratio=0.99)) == "machine CPU"
    assert saturated_by(result(machine_busy_ratio=0.5)) == "fsync"


def test_percentiles_are_in_milliseconds_and_absent_without_samples() -> None:
    assert percentiles([0.001, 0.002, 0.003]) == pytest.approx({"p50": 2.0, "p90": 2.8, "p99": 2.98})
    assert percentiles([]) == {}
