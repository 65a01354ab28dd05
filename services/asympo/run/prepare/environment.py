"""A task whose episodes an environment plays: in its own interpreter, through the gateway's sessions."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asympo.common.control.tokens import read_token
from asympo.common.errors import BadSetting
from asympo.common.settings import merge, validate
from asympo.gateway.settings import GatewaySettings
from asympo.learner.settings import LearnerSettings
from asympo.run.settings import RunFile
from asympo.tasks.config import ENVIRONMENTS, TaskConfig
from asympo.tasks.environments.player_command import asked_sampling, player_command
from asympo.tasks.environments.rows import write_rows

if TYPE_CHECKING:
    from asympo.run.held_out.evaluation import Episodes


def with_environment(file: RunFile, *, directory: Path | None = None) -> RunFile:
    """The file with what an environment needs beside it: its rows and a gateway.

    `directory` gets the rows instead of the run's own.
    """
    values = file.learner_values.get("task") or {}
    if not isinstance(values, dict) or values.get("name") not in ENVIRONMENTS:
        return file
    rows = (directory or file.directory.absolute()) / "environment.jsonl"
    if values.get("path") is None and not rows.exists():
        task = validate(TaskConfig, values)
        measures = file.run.evaluate or any(each.asks_the_run for each in file.run.evals)
        write_rows(_python(file, task.name), task, rows, holds_out=measures)
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
    task = learner.task
    if not task.is_environment:
        return ()
    address = f"http://{gateway.http_host}:{gateway.http_port}"
    said = (address, asked_sampling(learner.sampling), str(file.run.environment_groups))
    return tuple(player_command(_python(file, task.name), task, "play", *said))


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
