"""A real run seen from outside: every panel draws something, and a group's trace is whole."""

import itertools
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from asympo.common.tracing import trace_ids
from asympo.testing.run_process import RunProcess

from deploy.prometheus.server import Prometheus
from tests.integration.run.conftest import last_step
from tests.observability.collector import Collector, Span, collector
from tests.observability.queries import panel_queries
from tests.observability.tools import ROOT, program

NOT_HERE = ("kube_", "kubelet_", "DCGM_", "asympo_learner_mfu_", "asympo_gateway_")
"""Beginnings of the series of a cluster, of GPUs (a CPU's peak is not known), and of a gateway."""
MAX_SECONDS = 120
"""Within which every panel must have shown something."""


@dataclass(frozen=True, kw_only=True)
class LiveRun:
    """Broker, learner and two simulated generators, training."""

    directory: Path
    collector: Collector
    """Gets the traces of learner and generators."""


@pytest.fixture(scope="module")
def live_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[LiveRun]:
    folder = tmp_path_factory.mktemp("live")
    config = folder / "run.toml"
    (folder / "reward.py").write_text(
        "def parity(response_text, **columns):\n    return float(sum(map(ord, response_text)) % 2)\n"
    )
    with collector() as traces:
        config.write_text(
            f"""
            [run]
            name = "tiny"
            directory = "{folder}/runs"
            model = "{tiny_model}"
            evaluate = false
            [[run.evals]]
            name = "parity"
            samples = 2
            max_prompts = 4
            [[run.task.rewards]]
            function = "{folder}/reward.py:parity"
            [run.sampling]
            max_tokens = 6
            [learner]
            group_size = 4
            groups_per_step = 2
            total_steps = 100000
            save_every = 4
            compute_dtype = "float32"
            share_prefixes = "always"
            tracing.endpoint = "{traces.endpoint}"
            [generator]
            engine = "simulated"
            count = 2
            # About two steps a second are enough to see.
            max_groups_in_flight = 1
            simulated.seconds_per_token = 0.08
            tracing.endpoint = "{traces.endpoint}"
            # Policies this close to each other cannot be told apart, and that is an alert.
            max_consistent_reloads = 1000000
            """
        )
        run = RunProcess(config, log_path=folder / "run.log").start()
        try:
            run.until(lambda: last_step(folder / "runs/tiny") >= 4, seconds=200)
            yield LiveRun(directory=folder / "runs/tiny", collector=traces)
        finally:
            run.stop(deadline_seconds=120)


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    program("prometheus")
    server = Prometheus(tmp_path)
    yield server
    server.stop()


def _empty_panels(prometheus: Prometheus, *, since: float, among: dict[str, str]) -> dict[str, str]:
    """Where and what was asked, of those queries that gave no number since then."""
    found = {}
    for where, query in among.items():
        answer = prometheus.ask("query_range", query=query, start=since, end=time.time(), step=1)
        values = [value for series in answer["result"] for _, value in series["values"]]
        if not any(math.isfinite(float(value)) for value in values):
            found[where] = query
    return found


@pytest.mark.timeout(400)
def test_every_panel_shows_data_of_a_real_run(live_run: LiveRun, prometheus: Prometheus) -> None:
    command = [sys.executable, str(ROOT / "deploy/prometheus/targets.py"), str(live_run.directory)]
    subprocess.run([*command, str(prometheus.targets)], check=True, stdout=subprocess.DEVNULL)
    begun = time.time()
    empty = {
        where: query.replace("[1m]", "[10s]")
        for where, query in panel_queries()
        if not any(name in query for name in NOT_HERE)
    }
    while empty and time.time() < begun + MAX_SECONDS:
        time.sleep(5)
        empty = _empty_panels(prometheus, since=begun, among=empty)
    assert empty == {}
    assert {each["health"] for each in prometheus.ask("targets")["activeTargets"]} == {"up"}
    firing = [each for each in prometheus.ask("alerts")["alerts"] if each["state"] == "firing"]
    assert [each["labels"]["alertname"] for each in firing] == []


STAGES = ("lease", "generate", "reward", "append", "train", "publish")


def _whole(spans: list[Span]) -> dict[str, Span] | None:
    """The spans of one group that has its root and every stage, by name."""
    by_trace: dict[int, dict[str, Span]] = {}
    for span in spans:
        by_trace.setdefault(span.trace_id, {})[span.name] = span
    return next((each for each in by_trace.values() if {"group", "queue", *STAGES} <= each.keys()), None)


@pytest.mark.timeout(400)
def test_trace_of_a_group_goes_from_its_lease_to_the_published_policy(live_run: LiveRun) -> None:
    found = _whole(live_run.collector.wait_for(_whole, seconds=120))
    assert found is not None
    root = found["group"]
    assert (root.trace_id, root.span_id) == trace_ids("tiny", root.attributes["asympo.group_id"])
    assert root.parent_id == 0
    assert {each.parent_id for each in found.values() if each is not root} == {root.span_id}
    services = {name: span.service.removeprefix("asympo-") for name, span in found.items()}
    at_generator = {"group", "lease", "generate", "reward", "append"}
    assert {name for name, service in services.items() if service == "generator"} == at_generator
    assert {name for name, service in services.items() if service == "learner"} == {
        *("queue", "train", "publish")
    }
    in_order = [found[name] for name in STAGES]
    for before, after in itertools.pairwise(in_order[:4]):
        assert before.ended_ns <= after.begun_ns
    assert found["append"].begun_ns <= found["train"].begun_ns
    assert found["train"].ended_ns <= found["publish"].begun_ns <= found["publish"].ended_ns
    assert found["publish"].attributes["asympo.policy_step"] == found["train"].attributes["asympo.step"]
    assert not any(span.is_error for span in found.values())
