"""`asympo demo --seeds N`: one demo after the other, each with a seed of its own, and what became of each."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asympo.common.commands import write_json, write_table
from asympo.common.lifecycle import StopSignal
from asympo.local.process import launched

SEEDS = {"run": {"name": ""}, "learner": {"seed": 0}, "generator": {"vllm": {"seed": 0}}}
"""Settings of which each demo has its own."""
_SHOWN = (
    "held_out_accuracy_before",
    "held_out_accuracy_after",
    "wall_seconds",
    "peak_rss_bytes_total",
    "broken_promises",
    "remarks",
)
_POLL_SECONDS = 0.5


def run_seeds(count: int, flags: Sequence[str], *, directory: Path, is_json: bool) -> int:
    """The worst exit code, of a killed demo 128 + the signal; `directory` keeps runs, `flags` are for all."""
    found: list[dict[str, Any]] = []
    code = 0
    with StopSignal() as stop:
        for seed in range(count):
            name = f"demo-seed-{seed}"
            own = (f"--run.name={name}", f"--learner.seed={seed}", f"--generator.vllm.seed={seed}")
            command = [sys.executable, "-m", "asympo.cli", "demo", "--fresh", *flags, *own]
            begun = time.time()
            # In a session of its own: what a terminal sends to all must not reach it twice.
            demo = subprocess.Popen(
                launched(command), stdout=sys.stderr if is_json else None, start_new_session=True
            )
            stop.on_stop(demo.terminate)
            while demo.poll() is None:
                stop.wait(_POLL_SECONDS)
            ended = demo.returncode if demo.returncode >= 0 else 128 - demo.returncode
            code = max(code, ended)
            if stop.is_set:
                return 130
            found.append({"seed": seed, "exit_code": ended, **_said(directory / name, since=begun)})
    if is_json:
        write_json({"seeds": found})
    else:
        write_table("demos", ("seed", *_SHOWN[:4]), [_row(each) for each in found])
    return code


def _said(directory: Path, *, since: float) -> dict[str, Any]:
    """Nothing where a demo came to no end; what an earlier one left there is not its."""
    path = directory / "summary.json"
    if not path.exists() or path.stat().st_mtime < since:
        return {}
    summary = json.loads(path.read_text())
    return {name: summary.get(name) for name in _SHOWN}


def _row(found: Mapping[str, Any]) -> list[Any]:
    return [found["seed"], *(found.get(name, "-") for name in _SHOWN[:4])]
