"""What doctor says: one sentence about one thing, and what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is; only `wrong` makes doctor exit with 1."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence about one thing."""

    check: str
    level: Level
    text: str
    repair: str = ""
    """What to do about it."""


def _finding(check: str, level: Level) -> Callable[..., Finding]:
    def build(text: str, repair: str = "") -> Finding:
        return Finding(check=check, level=level, text=text, repair=repair)

    return build


def kinds(check: str) -> tuple[Callable[..., Finding], Callable[..., Finding], Callable[..., Finding]]:
    """Makers of findings of one check: fine, worth knowing, wrong."""
    return _finding(check, Level.OK), _finding(check, Level.NOTE), _finding(check, Level.WRONG)
