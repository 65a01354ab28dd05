"""A task whose episodes an environment plays: in its own interpreter, through the gateway's sessions."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.common.settings import merge, validate
from asympo.gateway.settings import GatewaySettings
from asympo.learner.settings import LearnerSettings
from asympo.run.settings import RunFile
from asympo.tasks.config import TaskConfig
from asympo.tasks.environments.player_command import player_command

_LOAD_SECONDS = 300.0


def with_environment(file: RunFile) -> RunFile:
    """The file with what a verifiers task needs beside it: its rows, a gateway, and nobody who scores."""
    task = file.learner_values.get("task") or {}
    if not isinstance(task, dict) or task.get("name") != "verifiers":
        return file
    if file.run.evaluate or file.run.evals:
        raise BadSetting(
            "an environment plays whole episodes, which no evaluation does: set run.evaluate to false and "
            "leave run.evals out"
        )
    rows = file.directory.absolute() / "environment.jsonl"
    if task.get("path") is None and not rows.exists():
        _write_rows(file, task, rows)
    values = merge(file.learner_values, {"task": {"path": task.get("path") or str(rows)}})
    return file.model_copy(update={"learner_values": values, "gateway_values": file.gateway_values or {}})


def play_command(file: RunFile, learner: LearnerSettings, gateway: GatewaySettings) -> tuple[str, ...]:
    """What plays the environment until the run ends; empty for other tasks."""
    task, sampling = learner.task, learner.sampling
    if task.name != "verifiers":
        return ()
    asked = {name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens")}
    address = f"http://{gateway.http_host}:{gateway.http_port}"
    groups = str(file.run.environment_groups)
    return tuple(player_command(_python(file), task, "play", address, json.dumps(asked), groups))


def _python(file: RunFile) -> Path:
    if file.run.environment_python is None:
        raise BadSetting(
            "a verifiers task needs run.environment_python: the Python of a virtual environment with "
            "verifiers and the environment"
        )
    return file.run.environment_python


def _write_rows(file: RunFile, values: dict[str, Any], out: Path) -> None:
    task = validate(TaskConfig, values)
    out.parent.mkdir(parents=True, exist_ok=True)
    _run(player_command(_python(file), task, "rows", str(out)), task.environment)
    if not out.exists():
        raise BadSetting(f"the environment {task.environment} wrote no rows")


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
