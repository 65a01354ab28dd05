"""The demo, shortened: broker, generator and learner on this machine, on one GPU beside each other."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from asympo.common.errors import NoProgress
from asympo.doctor.gpu.steps import Found

_STEPS = {"cuda": 24, "cpu": 2}
_MIN_GAIN = 0.2
"""Of held-out accuracy, from about 0.15: 24 steps give more."""


_FIGURES = (
    *("steps", "wall_seconds", "reloads", "restarts"),
    *("probe_failures", "requests_lost", "groups_trained_twice"),
    *("held_out_accuracy_before", "held_out_accuracy_after"),
)


def run(*, device: str, directory: Path) -> Found:
    """On a CPU the engine is the simulated one and nothing is learnt: the path alone is tried."""
    summary = summary_of_demo("gpu-check-demo", device=device, directory=directory, num_steps=_STEPS[device])
    figures = {name: summary[name] for name in _FIGURES}
    broken = [name for name in ("probe_failures", "requests_lost", "groups_trained_twice") if figures[name]]
    if broken or figures["restarts"]:
        return Found(
            sentence=f"{' and '.join(broken or ['restarts'])}: see the run's logs",
            is_ok=False,
            figures=figures,
        )
    before, after = figures["held_out_accuracy_before"], figures["held_out_accuracy_after"]
    if device == "cuda" and (before is None or after is None or after - before < _MIN_GAIN):
        return Found(
            sentence=f"held-out accuracy went from {before} to {after}", is_ok=False, figures=figures
        )
    learnt = "" if after is None else f", held-out accuracy {before:.2f} to {after:.2f}"
    return Found(
        sentence=f"{figures['steps']} steps in {figures['wall_seconds']:.0f} s{learnt}", figures=figures
    )


def summary_of_demo(name: str, *flags: str, device: str, directory: Path, num_steps: int) -> dict[str, Any]:
    """What a short demo writes at its end. Raises NoProgress when it fails."""
    shutil.rmtree(directory / name, ignore_errors=True)
    flags = (
        *("--run.directory", str(directory), "--run.name", name),
        *("--learner.total-steps", str(num_steps)),
        *flags,
    )
    if device == "cpu":
        flags += ("--run.evaluate", "false", "--run.use-gpus", "false", "--generator.engine", "simulated")
    command = [sys.executable, "-m", "asympo.cli", "demo", "--fresh", "--view.kind", "plain", *flags]
    done = subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    path = directory / name / "summary.json"
    if done.returncode != 0 or not path.is_file():
        raise NoProgress(f"the demo {name} ended with exit code {done.returncode}: see its log")
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary
