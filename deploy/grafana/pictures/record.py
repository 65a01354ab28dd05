"""Runs `asympo run`, scrapes it, and asks every panel's query over the time of the run."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from asympo.chaos.model import write_tiny_model

from deploy.prometheus.server import Prometheus

ROOT = Path(__file__).resolve().parents[3]
DASHBOARDS = ("training", "fleet", "rollout-log")
SCRAPE_SECONDS = 1
_VARIABLES = {"$__rate_interval": "10s", "$namespace": ".*", "$run": ".*"}
_START_SECONDS = 300.0
_NUM_POINTS = 240
"""On a curve."""


class Run:
    """One `asympo run` in a process of its own."""

    def __init__(self, config: Path, directory: Path, *, model: str | None) -> None:
        self.directory = directory
        flags = [f"--run.directory={directory}", "--view.kind=plain"]
        if model is not None:
            flags.append(f"--run.model={model}")
        environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
        self._log = (directory / "run.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "asympo.cli", "run", str(config), *flags],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait_for_step(self) -> Path:
        """The run's own directory, once a step was made."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and not self.has_ended:
            for path in self.directory.glob("*/metrics.jsonl"):
                if path.stat().st_size:
                    return path.parent
            time.sleep(0.2)
        raise SystemExit(f"the run made no step: {self._said()}")

    def kill_a_generator(self) -> None:
        """As a lost spot node does."""
        generators = [
            child for child in psutil.Process(self._process.pid).children() if "generator" in child.cmdline()
        ]
        if len(generators) > 1:
            generators[-1].kill()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(240)
        self._log.close()

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:]


def record(config: Path, directory: Path, *, model: str | None, seconds: float) -> dict[str, Any]:
    """Every dashboard with the values of its panels, over at most `seconds` of a run.

    ``model``: instead of the one that the file names; a tiny one for the file beside this.
    """
    prometheus = Prometheus(directory / "prometheus", interval=f"{SCRAPE_SECONDS}s")
    if config.parent == Path(__file__).parent:
        model = str(write_tiny_model(directory / "tiny-model", seed=0))
    run = Run(config, directory, model=model)
    try:
        run_directory = run.wait_for_step()
        command = [sys.executable, str(ROOT / "deploy/prometheus/targets.py"), str(run_directory)]
        subprocess.run([*command, str(prometheus.targets)], check=True, stdout=subprocess.DEVNULL)
        start = time.time()
        is_kill_due = True
        while time.time() < start + seconds and not run.has_ended:
            if is_kill_due and time.time() > start + 0.4 * seconds:
                run.kill_a_generator()
                is_kill_due = False
            time.sleep(1)
        return _evaluate(prometheus, start=start, end=time.time())
    finally:
        run.stop()
        prometheus.stop()


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
            r"\{\{\s*(\w+)\s*\}\}", lambda match, has=labels: has.get(match[1], ""), target["legendFormat"]
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
