"""Tasks by name."""

from asympo.tasks.base import Task
from asympo.tasks.config import TaskConfig

__all__ = ["Task", "TaskConfig", "load_task"]


def load_task(config: TaskConfig) -> Task:
    """Build the task: reads its file or generates its prompts, and runs no code of the user.

    Raises BadSetting with one sentence when the file is missing or malformed, or a library is not installed.
    """
    match config.name:
        case "addition":
            from asympo.tasks.addition import AdditionTask

            return AdditionTask(config)
        case "jsonl":
            from asympo.tasks.jsonl import JsonlTask

            return JsonlTask(config)
        case "data":
            from asympo.tasks.data.task import DataTask

            return DataTask(config)
        case "reasoning-gym":
            from asympo.tasks.reasoning_gym import ReasoningGymTask

            return ReasoningGymTask(config)
        case "verifiers" | "trl-environment":
            from asympo.tasks.environments.task import EnvironmentTask

            return EnvironmentTask(config)
