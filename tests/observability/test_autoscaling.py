"""The autoscaling rule: evaluated as Prometheus does, and steady on simulated fleets."""

import math
import os
from pathlib import Path

import pytest
import yaml

from tests.observability.tools import RULES, promtool

if not os.environ.get("CI"):
    pytest.importorskip("promql_parser", reason="promql-parser is missing: make setup")

from deploy.autoscaling_simulation.hpa import Hpa, HpaSettings
from deploy.autoscaling_simulation.promql import Expression, UnknownPromql
from deploy.autoscaling_simulation.rules import WANTED, RecordingRules
from deploy.autoscaling_simulation.scenarios import simulate
from deploy.autoscaling_simulation.series import SeriesStore
from deploy.autoscaling_simulation.simulation import Load, Pool, Scenario, Simulation

SLOW_LEARNER = (Load(step_seconds=240.0, group_seconds=4.0),)


@pytest.fixture(scope="module")
def rules() -> RecordingRules:
    return RecordingRules.load()


def _promtool_values(times: list[float], values: list[float], *, step: float, until: float) -> str:
    by_time = dict(zip(times, values, strict=True))
    at = (by_time.get(i * step) for i in range(int(until / step) + 1))
    return " ".join("_" if v is None else "stale" if math.isnan(v) else repr(v) for v in at)


def _quoted(labels: object) -> str:
    return ",".join(f'{name}="{value}"' for name, value in sorted(labels))  # type: ignore[call-overload]


def test_rule_evaluates_as_in_prometheus(rules: RecordingRules, tmp_path: Path) -> None:
    """Promtool gets the simulation's scrapes and must record what our evaluator recorded."""
    scenario = Scenario(
        name="compared",
        hours=1.0,
        pools=(
            Pool(name="a", first_replicas=5, preemptions_per_hour=3.0),
            Pool(name="b", weight=2.0, room=((0.0, 2),)),
            Pool(name="c", weight=None, first_replicas=1, groups_in_flight=48),
        ),
    )
    simulation = Simulation(scenario, seed=0, rules=rules)
    simulation.run()
    step, until = rules.interval_seconds, 3600.0
    recorded = {name for name, _ in rules.rules}
    inputs, expected = [], []
    for name, labels, times, values in simulation.store.dump():
        if name not in recorded:
            text = _promtool_values(times, values, step=step, until=until)
            inputs.append({"series": f"{name}{{{_quoted(labels)}}}", "values": text})
            continue
        for time in (300.0, 1200.0, 2400.0, 3600.0):
            value = dict(zip(times, values, strict=True)).get(time, math.nan)
            is_there = not math.isnan(value)
            expression = f"group(abs({name}{{{_quoted(labels)}}} - {value!r}) < 0.000001)"
            expected.append(
                {
                    "expr": expression if is_there else f"group({name}{{{_quoted(labels)}}})",
                    "eval_time": f"{time:.0f}s",
                    "exp_samples": [{"labels": "{}", "value": 1}] if is_there else [],
                }
            )
    assert len(expected) > 40
    test = {"interval": f"{step:.0f}s", "input_series": inputs, "promql_expr_test": expected}
    path = tmp_path / "compared.yaml"
    files = [str(RULES / "autoscaling.yaml")]
    path.write_text(
        yaml.safe_dump({"rule_files": files, "evaluation_interval": f"{step:.0f}s", "tests": [test]})
    )
    promtool("test", "rules", path)


@pytest.mark.parametrize(("slots", "most", "number"), [(208.0, 16.0, 16.0), (150.0, 12.0, 15.0)])
def test_generators_of_two_sizes_all_count_and_none_is_removed_while_the_learner_waits(
    slots: float, most: float, number: float, rules: RecordingRules
) -> None:
    """Two that hold 48 groups and thirteen that hold 8 are full; the learner waits, and 8 slots are free."""
    store, run = SeriesStore(), frozenset({("namespace", "n"), ("run", "r")})
    limits = {run | {("pool", "a"), ("pod", str(i))}: size for i, size in enumerate([48.0] * 2 + [8.0] * 13)}
    for time in range(0, 1200, 15):
        store.record("asympo_generator_ready", time, dict.fromkeys(limits, 1.0))
        for name in ("asympo_generator_groups_in_flight", "asympo_generator_max_groups_in_flight"):
            store.record(name, time, limits)
        states = {"capacity": slots, "leased": slots - 8, "open": 0.0}
        store.record("asympo_learner_slots", time, {run | {("state", k)}: v for k, v in states.items()})
        store.record("asympo_learner_waited_seconds_total", time, {run: time / 2})
        store.record("asympo:pool_weight", time, {run | {("pool", "a")}: 1.0})
        wanted = rules.evaluate(store, time)
    assert dict(store.instant("asympo:generators_busy", time)) == {run: 15.0}
    assert dict(store.instant("asympo:generators_max", time)) == {run: most}
    assert list(wanted.values()) == [number]


def test_fleet_settles_and_the_learner_hardly_waits_when_generators_are_preempted(
    rules: RecordingRules,
) -> None:
    scenario = Scenario(name="spot", hours=4.0, pools=(Pool(preemptions_per_hour=0.5),))
    found, trace = simulate(scenario, seed=7, rules=rules)
    assert found.waiting_ratio < 0.05
    assert found.max_replicas <= scenario.max_replicas
    assert found.changes_per_hour < 6
    assert trace.ready[-1] > 1


def test_fleet_shrinks_to_the_floor_when_the_learner_is_the_bottleneck(rules: RecordingRules) -> None:
    scenario = Scenario(
        name="slow", hours=4.0, pools=(Pool(first_replicas=16),), max_staleness=4, loads=SLOW_LEARNER
    )
    found, _ = simulate(scenario, seed=7, rules=rules)
    assert found.last_replicas <= 2
    assert found.waiting_ratio < 0.01


def test_simulation_is_a_function_of_its_seed(rules: RecordingRules) -> None:
    scenario = Scenario(name="again", hours=0.4, pools=(Pool(first_replicas=4, preemptions_per_hour=2.0),))
    one, two, other = (Simulation(scenario, seed=seed, rules=rules).run() for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_nothing_is_wanted_while_no_generator_is_scraped(rules: RecordingRules) -> None:
    store = SeriesStore()
    store.append("asympo_learner_waited_seconds_total", frozenset({("run", "r")}), 0.0, 1.0)
    assert rules.evaluate(store, 0.0) == {}
    assert rules.rules[-1][0] == WANTED


@pytest.mark.parametrize(
    "text", ["topk(2, a)", "a * on (run) b", "a offset 5m", "histogram_quantile(0.5, a)", "1 + 1"]
)
def test_evaluator_refuses_what_it_does_not_know(text: str) -> None:
    with pytest.raises(UnknownPromql):
        Expression(text).at(SeriesStore(), 0.0)


def test_hpa_ignores_a_tenth_grows_by_policy_and_shrinks_only_after_its_window() -> None:
    hpa = Hpa(settings=HpaSettings(max_replicas=50))
    assert hpa.replicas(0.0, current=10, metric=10.9) == 10
    assert hpa.replicas(15.0, current=10, metric=40.0) == 20
    assert hpa.replicas(30.0, current=20, metric=40.0) == 20
    assert hpa.replicas(75.5, current=20, metric=40.0) == 40
    assert hpa.replicas(90.0, current=40, metric=None) == 40
    assert hpa.replicas(105.0, current=40, metric=4.0) == 40
    assert hpa.replicas(700.0, current=40, metric=4.0) == 34
    assert hpa.replicas(715.0, current=34, metric=4.0) == 34
