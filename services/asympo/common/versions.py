"""Versions of what one release writes and another reads.

A reader ignores keys it does not know, so a release may add what others can do without under the same number.
It raises the number for everything else, and then still reads the number before.
"""

from dataclasses import dataclass
from typing import Any

from asympo.common.errors import UnknownVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One thing that crosses releases."""

    name: str
    """Field that holds the number."""
    newest: int
    """What this build writes."""
    oldest: int
    """What the release before wrote, and this build still reads."""

    def check(self, found: Any, *, what: str) -> int:
        """`found` when this build reads it; raises UnknownVersion naming `what` and what to do."""
        if type(found) is int and self.oldest <= found <= self.newest:
            return found
        reads = str(self.newest) if self.oldest == self.newest else f"{self.oldest} to {self.newest}"
        said = f"{what} has {self.name} {found!r}, and this build reads {reads}"
        if type(found) is int and found > self.newest:
            raise UnknownVersion(f"{said}: a newer release wrote it, upgrade this one")
        if type(found) is int:
            raise UnknownVersion(f"{said}: upgrade one release at a time, or use the one that wrote it")
        raise UnknownVersion(f"{said}: that is not the version of a release")
