"""Runs `asympo run`, scrapes it, and asks every panel's query over the time of the run."""

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from asympo.testing.run_process import RunProcess
from asympo.testing.tiny_model import write_tiny_model

from deploy.prometheus.server import Prometheus

ROOT = Path(__file__).resolve().parents[3]
DASHBOARDS = ("training", "fleet", "rollout-log")
SCRAPE_SECONDS = 1
_VARIABLES = {"$__rate_interval": "10s", "$namespace": ".*", "$run": ".*"}
_START_SECONDS = 300.0
_NUM_POINTS = 240
"""On a curve."""


def record(config: Path, directory: Path, *, model: str | None, seconds: float) -> dict[str, Any]:
    """Every dashboard with the values of its panels, over at most `seconds` of a run.

    `model`: instead of the one that the file names; a tiny one for the file beside this.
    """
    prometheus = Prometheus(directory / "prometheus", interval=f"{SCRAPE_SECONDS}s")
    if config.parent == Path(__file__).parent:
        model = str(write_tiny_model(directory / "tiny-model", seed=0))
    flags = [f"--run.directory={directory}", *([f"--run.model={model}"] if model else [])]
    run = RunProcess(config, *flags, log_path=directory / "run.log").start()
    try:
        run_directory = run.until(lambda: _first_run(directory), seconds=_START_SECONDS, what="step")
        command = [sys.executable, str(ROOT / "deploy/prometheus/targets.py"), str(run_directory)]
        subprocess.run([*command, str(prometheus.targets)], check=True, stdout=subprocess.DEVNULL)
        start = time.time()
        is_kill_due = True
        while time.time() < start + seconds and run.is_running:
            if is_kill_due and time.time() > start + 0.4 * seconds:
                # As a lost spot node does.
                for generator in run.services("generator")[1:2]:
                    generator.kill()
                is_kill_due = False
            time.sleep(1)
        return _evaluate(prometheus, start=start, end=time.time())
    finally:
        run.stop(deadline_seconds=240)
        prometheus.stop()


def _first_run(directory: Path) -> Path | None:
    """The directory of the run that has made a step."""
    return next((path.parent for path in directory.glob("*/metrics.jsonl") if path.stat().st_size), None)


def _evaluate(prometheus: Prometheus, *, start: float, end: float) -> dict[str, Any]:
    step = max(SCRAPE_SECONDS, (end - start) / _NUM_POINTS)
    boards = {}
    for name in DASHBOARDS:
        board = json.loads((ROOT / f"helm/asympo/dashboards/{name}.json").read_text())
        for panel in board["panels"]:
            panel["series"] = [
                series
                for target in panel.get("targets", [])
                for series in _series(prometheus, target, start=start, end=end, step=step)
            ]
        boards[name] = board
    return {"from": 1000 * start, "to": 1000 * end, "boards": boards}


def _series(prometheus: Prometheus, target: dict[str, Any], **span: float) -> list[dict[str, Any]]:
    expression = target["expr"]
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    found = []
    for result in prometheus.ask("query_range", query=expression, **span)["result"]:
        labels = result["metric"]
        legend = re.sub(
            r"\{\{\s*(\w+)\s*\}\}",
            lambda match: labels.get(match[1], ""),  # noqa: B023 - called at once
            target["legendFormat"],
        )
        points = [(1000 * at, float(value)) for at, value in result["values"]]
        found.append(
            {
                "name": legend,
                "times": [at for at, _ in points],
                "values": [value if math.isfinite(value) else None for _, value in points],
            }
        )
    return found
