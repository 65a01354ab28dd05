"""A run's gateway: where it listens, and which doors its sessions ask."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from asympo.common.errors import BadSetting
from asympo.gateway.settings import GatewaySettings
from asympo.generator.settings import DoorOptions
from asympo.local.ports import free_port, is_free, require_free
from asympo.tasks.environments.player.stage import KEY_VARIABLE as PLAYERS_TOKEN


def gateway_defaults(
    own: Mapping[str, Any], *, doors: Sequence[DoorOptions], taken: set[int], source: str
) -> dict[str, Any]:
    """What [gateway] leaves open; ports that it is given here are added to `taken`."""
    for key in ("run", "redis_url"):
        if key in own:
            raise BadSetting(f"{key} in [gateway] of {source} is decided by [run] and [broker]: leave it out")
    values: dict[str, Any] = {}
    for name in ("http_port", "grpc_port"):
        if name in own:
            require_free(own[name], setting=f"gateway.{name}")
            continue
        usual = GatewaySettings.model_fields[name].default
        is_usual = usual not in taken and is_free(usual)
        values[name] = usual if is_usual else free_port(avoid=frozenset(taken))
        taken.add(values[name])
    open_doors = [door for door in doors if door.port]
    if open_doors and "doors" not in own:
        values["doors"] = [f"http://{door.host}:{door.port}/v1" for door in open_doors]
        values["model_name"] = open_doors[0].model_name
        if open_doors[0].tokens is not None:
            values["doors_token"] = str(open_doors[0].tokens)
    return values


def check_producers(settings: GatewaySettings, *, is_played: bool) -> None:
    """The producers' file, and that it knows the token of what plays the task; raises BadSetting."""
    # It imports redis, which nobody needs who only looks at settings.
    from asympo.gateway.producers import NotAllowed, Producers, Scope

    producers = Producers.read(settings.producers)
    try:
        if is_played:
            producers.admit(f"Bearer {os.environ.get(PLAYERS_TOKEN, '')}", Scope.SESSIONS)
    except NotAllowed as error:
        raise BadSetting(
            f"what plays the environment shows the gateway the token in {PLAYERS_TOKEN}: set it to that of a "
            f"producer in {settings.producers} with the scope sessions ({error})"
        ) from None


def gateway_note(settings: GatewaySettings) -> str:
    """Where producers find it."""
    sessions = f"sessions ask {len(settings.doors)} generators" if settings.doors else "no sessions"
    return (
        f"the gateway takes groups on http://{settings.http_host}:{settings.http_port} and "
        f"grpc://{settings.grpc_address}; {sessions}"
    )
