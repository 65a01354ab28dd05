"""The task of a run, once it is known that this machine has the same."""

from typing import Any

from pydantic import ValidationError

from asympo.common.errors import RunConfigMismatch
from asympo.common.rollout_log import RunConfig
from asympo.common.settings import problem_of
from asympo.tasks.base import Task
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task
from asympo.tasks.render import render_prompt
from asympo.tasks.tokenizer_digest import tokenizer_digest


def task_config_of(config: RunConfig, *, task_path: str | None) -> TaskConfig:
    """The run's task as settings of ours, its file looked for at `task_path` if given."""
    values = dict(config.task)
    if task_path is not None:
        values["data" if values.get("name") == "data" else "path"] = task_path
    try:
        return TaskConfig(**values)
    except ValidationError as error:
        raise RunConfigMismatch(
            f"run {config.run!r} asks for a task this build does not know (task.{problem_of(error)}): "
            "use the build that created it"
        ) from error


def load_same_task(config: RunConfig, task_config: TaskConfig) -> Task:
    """The task, once its content is known to be what the run was created with."""
    task = load_task(task_config)
    _compare(config, "task_digest", task.digest, "give this machine the same task file and library versions")
    _compare(config, "num_prompts", len(task), "give this machine the same task file and library versions")
    return task


def check_tokenizer(config: RunConfig, tokenizer: Any, task: Task) -> None:
    """Raises RunConfigMismatch when ids would differ, BadSetting when the task cannot be rendered at all."""
    check_tokenizer_digest(config, tokenizer)
    render_prompt(task.prompt(0), tokenizer)


def check_tokenizer_digest(config: RunConfig, tokenizer: Any) -> None:
    """Raises RunConfigMismatch when ids would differ from those of the run."""
    _compare(
        config,
        "tokenizer_digest",
        tokenizer_digest(tokenizer),
        "use the model and tokenizer that the run was created with",
    )


def _compare(config: RunConfig, name: str, ours: Any, remedy: str) -> None:
    stored = getattr(config, name)
    if stored and stored != ours:
        raise RunConfigMismatch(
            f"run {config.run!r} was created with {name} {_short(stored)}, here it is {_short(ours)}: "
            f"{remedy}"
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 16 else text
