"""A task whose episodes an environment plays: in its own interpreter, through the gateway's sessions."""

import json
import subprocess
from pathlib import Path

from asympo.common.errors import BadSetting
from asympo.common.settings import merge
from asympo.gateway.settings import GatewaySettings
from asympo.learner.settings import LearnerSettings
from asympo.run.settings import RunFile

PLAYER = Path(__file__).parents[2] / "tasks" / "environments" / "player.py"
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


def player_command(file: RunFile, learner: LearnerSettings, gateway: GatewaySettings) -> tuple[str, ...]:
    """What plays the environment until the run ends; empty for other tasks."""
    task, sampling = learner.task, learner.sampling
    if task.name != "verifiers":
        return ()
    asked = {name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens")}
    address = f"http://{gateway.http_host}:{gateway.http_port}"
    groups = str(file.run.environment_groups)
    play = _command(file, "play", task.environment, task.environment_args)
    return (*play, address, json.dumps(asked), groups)


def _command(file: RunFile, verb: str, name: object, arguments: object) -> list[str]:
    if file.run.environment_python is None:
        raise BadSetting(
            "a verifiers task needs run.environment_python: the Python of a virtual environment with "
            "verifiers and the environment"
        )
    return [str(file.run.environment_python), str(PLAYER), verb, str(name), json.dumps(arguments)]


def _write_rows(file: RunFile, task: dict[str, object], out: Path) -> None:
    name = task.get("environment")
    command = _command(file, "rows", name, task.get("environment_args") or {})
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            [*command, str(out)],
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
    if done.returncode != 0 or not out.exists():
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise BadSetting(f"the environment {name} cannot be loaded by {command[0]}: {said}")
