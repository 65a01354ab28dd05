"""How the player of an environment is started."""

import json
from pathlib import Path

from asympo.tasks.config import TaskConfig

PLAYER = Path(__file__).with_name("player") / "__main__.py"


def player_command(python: str | Path, task: TaskConfig, *verb: str) -> list[str]:
    """The command for one of the player's verbs. Nothing beside the player itself is found by its place."""
    spec = {
        "kind": task.name,
        "environment": task.environment,
        "arguments": task.environment_args,
        "source": task.environment_rows,
        "rows": task.path,
    }
    return [str(python), "-P", str(PLAYER), json.dumps(spec), *verb]
