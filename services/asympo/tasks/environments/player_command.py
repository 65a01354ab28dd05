"""How the player of an environment is started."""

import json
import logging
from pathlib import Path

from asympo.tasks.config import TaskConfig

log = logging.getLogger(__name__)

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
    """How turns are sampled, as a player is told; warns of what no turn can be asked with."""
    for name in ("min_tokens", "stop"):
        if value := getattr(sampling, name):
            log.warning(
                "%s = %r counts for nothing here: the turns of an environment are sampled with %s alone",
                *(name, value, ", ".join(_SAMPLED_BY)),
            )
    return json.dumps({name: getattr(sampling, name) for name in _SAMPLED_BY})
