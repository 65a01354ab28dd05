"""Whether a run goes on with the broker that has its log."""

import os
from collections.abc import Mapping
from typing import Any

from asympo.common.errors import BadSetting
from asympo.common.redaction import redact_url
from asympo.run.directory import RunDirectory
from asympo.run.settings import RunFile


def check_broker(file: RunFile, mark: Mapping[str, Any]) -> None:
    """BadSetting where the run has a log on a broker of its own and is now given another one, or the reverse.

    Its log is not on the other one: there it would begin with an empty log.
    """
    given = file.external_broker_url
    if "broker_url" not in mark or (mark["broker_url"] is None) == (given is not None):
        return
    directory = RunDirectory(file.directory)
    # A start that reached no broker, or trained nothing on one that it was given, has no log to lose.
    has_log = any((directory.path / "broker").glob("*")) if given is not None else directory.step > 0
    if not has_log:
        return
    if given is not None:
        name = "REDIS_URL" if os.environ.get("REDIS_URL") else "broker.url"
        raise BadSetting(
            f"the run in {file.directory} has its log on a broker of its own, and {name} gives another one, "
            f"{redact_url(given)}: leave {name} out, or start over with --fresh"
        )
    before = f", {mark['redis_url']}," if mark.get("redis_url") else ""
    raise BadSetting(
        f"the run in {file.directory} has its log on a broker that it was given{before} and now is given "
        "none: set REDIS_URL or broker.url as before, or start over with --fresh"
    )


def noted_broker(own_url: str | None, given_url: str | None) -> dict[str, Any]:
    """What a run notes of its broker: the address of its own, or that of REDIS_URL, without its secrets."""
    return {"broker_url": own_url, "redis_url": redact_url(given_url) if given_url else None}
