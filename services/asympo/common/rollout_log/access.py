"""One run on one broker, which every part of its log works through: its keys, its scripts, its errors."""

from collections.abc import Sequence
from typing import Any, NoReturn

from asympo.common.errors import BrokerChanged, Fenced
from asympo.common.names import check_run_name
from asympo.common.rollout_log.broker.connection import Broker
from asympo.common.rollout_log.keys import key
from asympo.common.rollout_log.lua import load_script
from asympo.common.rollout_log.types import Fence


class RunAccess:
    """One run on one broker. Safe to share between threads."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = check_run_name(name)

    def key(self, noun: str) -> str:
        """The full name of one of the run's keys."""
        return key(self.name, noun)

    def call(self, script: str, *arguments: Any) -> list[Any]:
        """Runs a script on the run's keys that its head names."""
        keys = [self.key(noun) for noun in load_script(script).nouns]
        reply = self.broker.run_script(script, keys, arguments)
        return reply if isinstance(reply, list) else [reply]

    def call_fenced(self, fence: Fence, script: str, *arguments: Any) -> list[Any]:
        """The same for a script that begins with the fence check; raises Fenced or BrokerChanged."""
        reply = self.call(script, fence.number, fence.token, fence.server_id, *arguments)
        status = reply[0].decode() if isinstance(reply[0], bytes) else ""
        if status in ("FENCED", "CHANGED"):
            self.raise_refused(status, fence, reply)
        return reply

    def raise_refused(self, status: str, fence: Fence, reply: Sequence[Any]) -> NoReturn:
        """Raises what a fenced script's status, FENCED or CHANGED, means."""
        if status == "CHANGED":
            raise BrokerChanged(
                f"the broker of run {self.name!r} restarted, failed over or lost state since fence "
                f"{fence.number} was checked: reconcile before going on"
            )
        raise Fenced(
            f"run {self.name!r} belongs to fence {text(reply[1])} ({text(reply[2])}) now, ours was "
            f"{fence.number}: this learner must stop"
        )


def text(value: Any) -> str:
    """A reply's bytes or number as text; None as empty."""
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)


def number(value: Any) -> int:
    """A reply's number; absent counts as 0."""
    return int(value) if value not in (None, b"") else 0
