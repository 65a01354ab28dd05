"""A task whose episodes an environment plays: in its own interpreter, through the gateway's sessions."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asympo.common.control.tokens import read_token
from asympo.common.errors import BadSetting
from asympo.common.settings import merge, validate
from asympo.gateway.settings import GatewaySettings
from asympo.learner.settings import LearnerSettings
from asympo.local.whole_file import write_whole
from asympo.run.settings import RunFile
from asympo.tasks.base import held_out_keys
from asympo.tasks.config import ENVIRONMENTS, TaskConfig
from asympo.tasks.environments.player_command import player_command

if TYPE_CHECKING:
    from asympo.run.held_out.evaluation import Episodes

_LOAD_SECONDS = 300.0


def with_environment(file: RunFile) -> RunFile:
    """The file with what an environment needs beside it: its rows and a gateway."""
    values = file.learner_values.get("task") or {}
    if not isinstance(values, dict) or values.get("name") not in ENVIRONMENTS:
        return file
    rows = file.directory.absolute() / "environment.jsonl"
    if values.get("path") is None and not rows.exists():
        task = validate(TaskConfig, values)
        _write_rows(file, task, rows)
        if file.run.evaluate or any(each.asks_the_run for each in file.run.evals):
            _hold_out(task, rows)
    learner_values = merge(file.learner_values, {"task": {"path": values.get("path") or str(rows)}})
    return file.model_copy(
        update={"learner_values": learner_values, "gateway_values": file.gateway_values or {}}
    )


def evaluation_of_episodes(file: RunFile, gateway: GatewaySettings) -> dict[str, Any]:
    """Settings of an evaluator that plays the run's environment."""
    task = file.learner_values.get("task") or {}
    if not isinstance(task, dict) or task.get("name") not in ENVIRONMENTS:
        return {}
    python = str(_python(file, task["name"]))
    values: dict[str, Any] = {"environment": task["environment"], "environment_python": python}
    if file.evaluator_values.get("engine", "generators") == "generators":
        values["doors"] = list(gateway.doors)
        if gateway.doors_token is not None:
            values["doors_token"] = str(gateway.doors_token)
    elif parser := file.generator_values.get("door", {}).get("tool_call_parser"):
        values["tool_call_parser"] = parser
    return values


def episodes_of(
    file: RunFile, learner: LearnerSettings, gateway: GatewaySettings | None
) -> "Episodes | None":
    """How the first and the last policy are measured; None for tasks that are scored here."""
    if not learner.task.is_environment or gateway is None:
        return None
    if not gateway.doors:
        raise BadSetting(
            "episodes ask a generator's door, and the gateway has none: set run.evaluate to false, or give "
            "gateway.doors"
        )
    from asympo.evaluator.episodes import EpisodePlayer
    from asympo.run.held_out.evaluation import Episodes

    player = EpisodePlayer(python=_python(file, learner.task.name), token=read_token(gateway.doors_token))
    return Episodes(player=player, door=gateway.doors[0])


def play_command(file: RunFile, learner: LearnerSettings, gateway: GatewaySettings) -> tuple[str, ...]:
    """What plays the environment until the run ends; empty for other tasks."""
    task, sampling = learner.task, learner.sampling
    if not task.is_environment:
        return ()
    asked = {name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens")}
    address = f"http://{gateway.http_host}:{gateway.http_port}"
    groups = str(file.run.environment_groups)
    return tuple(player_command(_python(file, task.name), task, "play", address, json.dumps(asked), groups))


def _python(file: RunFile, kind: str) -> Path:
    if file.run.environment_python is None:
        if kind == "trl-environment":
            # It needs nothing that contradicts what is here.
            return Path(sys.executable)
        raise BadSetting(
            "a verifiers task needs run.environment_python: the Python of a virtual environment with "
            "verifiers and the environment"
        )
    return file.run.environment_python


def _write_rows(file: RunFile, task: TaskConfig, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    _run(player_command(_python(file, task.name), task, "rows", str(out)), task.environment)
    if not out.exists():
        raise BadSetting(f"the environment {task.environment} wrote no rows")


def _hold_out(task: TaskConfig, path: Path) -> None:
    """Marks a share of the rows, unless the environment has a split of its own for evaluation."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    if any(row.get("held_out") for row in rows):
        return
    asked = [json.dumps(row.get("prompt"), sort_keys=True) for row in rows]
    chosen = held_out_keys(asked, fraction=task.held_out_fraction, seed=task.seed)
    for row, key in zip(rows, asked, strict=True):
        if key in chosen:
            row["held_out"] = True
    write_whole(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def _run(command: Sequence[str], name: str | None) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_LOAD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BadSetting(f"the environment {name} did not load within {_LOAD_SECONDS:.0f} s") from error
    except OSError as error:
        raise BadSetting(f"run.environment_python {command[0]} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise BadSetting(f"the environment {name} cannot be loaded by {command[0]}: {said}")
