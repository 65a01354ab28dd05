"""A door of a run, and what is said of each case that went through it."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from asympo.chaos.hostile.garbage import Garbage
from asympo.common.foreign.text import printable

_MAX_CHARS = 70


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """One way in."""

    name: str
    """As it is counted."""
    put: Callable[[Garbage], Awaitable[str]]
    """One case; says what became of it in a few words. Raises NotTaken where the other side misbehaved."""


class Misbehaved(Exception):
    """The other side broke, hung or answered as nobody should."""


def in_short(sentence: object) -> str:
    """A sentence without what is different from case to case, so that cases of a kind count together."""
    text = re.sub(r"(['\"]).*?\1", "'…'", printable(sentence))
    return re.sub(r"\d+", "N", text)[:_MAX_CHARS].strip()
