"""Every panel draws something: real services, scraped by a real Prometheus, asked every query."""

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.run.test_run import RunProcess, last_step, wait_for
from tests.observability.prometheus import Prometheus
from tests.observability.queries import panel_queries
from tests.observability.tools import ROOT

MAX_SECONDS = 120
"""Within which every panel must have shown something."""


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
        [run]
        name = "tiny"
        directory = "{tmp_path}/runs"
        model = "{tiny_model}"
        evaluate = false
        [run.sampling]
        max_tokens = 6
        [learner]
        group_size = 4
        groups_per_step = 2
        total_steps = 100000
        save_every = 4
        [generator]
        engine = "simulated"
        count = 2
        # Policies this close to each other cannot be told apart, and that is an alert.
        max_consistent_reloads = 1000000
        """
    )
    return path


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    folder = tmp_path / "prometheus"
    folder.mkdir()
    server = Prometheus(folder)
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
def test_every_panel_shows_data_of_a_real_run(config: Path, prometheus: Prometheus, tmp_path: Path) -> None:
    directory = tmp_path / "runs/tiny"
    run = RunProcess(config)
    try:
        wait_for(lambda: last_step(directory) >= 4, run, 200)
        command = [sys.executable, str(ROOT / "deploy/prometheus/targets.py"), str(directory)]
        subprocess.run([*command, str(prometheus.targets)], check=True, stdout=subprocess.DEVNULL)
        begun = time.time()
        empty = {where: query.replace("[1m]", "[10s]") for where, query in panel_queries()}
        while empty and time.time() < begun + MAX_SECONDS:
            time.sleep(5)
            empty = _empty_panels(prometheus, since=begun, among=empty)
        health = {each["health"] for each in prometheus.ask("targets")["activeTargets"]}
        firing = prometheus.ask("alerts")["alerts"]
    finally:
        run.process.terminate()
        run.finish()
    assert empty == {}
    assert health == {"up"}
    assert [each["labels"]["alertname"] for each in firing if each["state"] == "firing"] == []
