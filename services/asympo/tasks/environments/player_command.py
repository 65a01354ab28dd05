"""How the player of an environment is started."""

import json
from pathlib import Path

from asympo.common.errors import BadSetting
from asympo.tasks.config import TaskConfig

PLAYER = Path(__file__).with_name("player") / "__main__.py"
_SAMPLED_BY = ("temperature", "top_p", "max_tokens")


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


def asked_sampling(sampling: object) -> str:
    """How turns are sampled, as a player is told. Raises BadSetting for what no turn can be asked with."""
    for name in ("min_tokens", "stop"):
        if value := getattr(sampling, name):
            raise BadSetting(
                f"{name} is {value!r}: the turns of an environment are sampled with {', '.join(_SAMPLED_BY)} "
                f"alone, so leave {name} out"
            )
    return json.dumps({name: getattr(sampling, name) for name in _SAMPLED_BY})
