"""One run on one broker, which every part of its log works through: its keys, its scripts, its errors."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from asympo.common.errors import BrokerChanged, Fenced
from asympo.common.foreign.documents import parse_object
from asympo.common.foreign.numbers import parse_whole
from asympo.common.foreign.text import printable
from asympo.common.names import check_run_name
from asympo.common.rollout_log.broker.connection import Broker
from asympo.common.rollout_log.keys import key
from asympo.common.rollout_log.lua import load_script
from asympo.common.rollout_log.types import Fence

log = logging.getLogger(__name__)

MAX_VALUE_BYTES = 16 * 1024
"""Of one report, status or reason that somebody leaves on the broker."""


class RunAccess:
    """One run on one broker. Safe to share between threads."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = check_run_name(name)
        self.unreadable: Counter[str] = Counter()
        """Values that somebody wrote and nobody can read, by the noun of their key."""

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

    def learner_fields(self, *names: str) -> list[bytes | None]:
        """Fields that only the learner writes; None for those that are not there."""
        state, *values = self.broker.command("HMGET", self.key("learner"), "state", *names)
        if state is None:
            # A run of script version 2, or none.
            values = self.broker.command("HMGET", self.key("run"), *names)
        return values

    def read_object(self, noun: str, value: Any) -> dict[str, Any] | None:
        """A JSON object that somebody else wrote; None, and counted, if it is not one."""
        try:
            return parse_object(value, max_bytes=MAX_VALUE_BYTES)
        except ValueError as error:
            self.count_unreadable(noun, str(error))
            return None

    def count_unreadable(self, noun: str, reason: str) -> None:
        """Notes a value that is set aside; the log says it once for each kind."""
        self.unreadable[noun] += 1
        if self.unreadable[noun] == 1:
            log.warning("A value in %s is set aside, as others may be: %s", self.key(noun), printable(reason))

    def raise_refused(self, status: str, fence: Fence, reply: Sequence[Any]) -> NoReturn:
        """Raises what a fenced script's status means: FENCED, CHANGED or DELETED."""
        if status == "CHANGED":
            raise BrokerChanged(
                f"the broker of run {self.name!r} restarted, failed over or lost state since fence "
                f"{fence.number} was checked: reconcile before going on"
            )
        if status == "DELETED":
            raise Fenced(
                f"run {self.name!r}, whose fence {fence.number} is ours, was deleted from its broker: "
                "this learner must stop"
            )
        raise Fenced(
            f"run {self.name!r} belongs to fence {text(reply[1])} ({text(reply[2])}) now, ours was "
            f"{fence.number}: this learner must stop"
        )


def text(value: Any) -> str:
    """A reply's bytes or number as text, whatever the bytes are; None as empty."""
    if value is None:
        return ""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def number(value: Any) -> int:
    """A reply's whole number; what is absent or none counts as 0."""
    return parse_whole(value) or 0
