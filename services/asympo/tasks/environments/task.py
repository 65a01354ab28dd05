"""Prompts of an environment; its episodes are played and scored in a process of its own."""

import json
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.tasks.base import SplitPrompts, TaskPrompt
from asympo.tasks.config import TaskConfig
from asympo.tasks.data.messages import check_messages
from asympo.tasks.environments.player.stage import given_of


class EnvironmentTask(SplitPrompts):
    """Every row that the environment wrote down; held out are those that say so.

    The environment itself is never run here: settings that came over the broker name no program.
    """

    def __init__(self, config: TaskConfig) -> None:
        self.name = config.name
        if config.path is None:
            raise BadSetting(
                f"the {config.name} task needs path, the environment's rows: `asympo run` writes them"
            )
        read = _read_rows(config.path)
        rows = [(number, {"row": number, **_parts(row, number)}) for number, row in enumerate(read)]
        self.place(rows, {number for number, row in enumerate(read) if row.get("held_out")})
        if not len(self):
            raise BadSetting(f"task.path {config.path} holds every row out: nothing is left to train on")
        settings = config.model_dump(mode="json", exclude={"path", "environment_rows"})
        self.digest = self.digest_with(settings, with_columns=config.name == "trl-environment")

    def prepare_scoring(self, *, allow_python: bool = False) -> None:
        """Nothing to load."""

    def score(self, prompt: TaskPrompt, response_text: str) -> float:
        """Only the environment's own rubric can."""
        raise BadSetting("an environment scores whole episodes, in its own process: play it through sessions")


def _parts(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A prompt's arguments; what the environment is given besides prompt and answer are its columns."""
    given = given_of(row)
    columns = {key: value for key, value in given.items() if key not in ("prompt", "answer", "held_out")}
    parts: dict[str, Any] = {"answer": str(row.get("answer") or ""), "columns": columns}
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return parts | {"text": prompt}
    return parts | {"messages": check_messages(prompt, f"row {number} of the environment")}


def _read_rows(path: str) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in Path(path).read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise BadSetting(f"task.path {path}, the rows of the environment, cannot be read: {error}") from error
    if not rows:
        raise BadSetting(f"task.path {path} has no rows: the environment has nothing to train on")
    return rows
