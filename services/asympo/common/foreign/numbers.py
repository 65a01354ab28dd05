"""Numbers in names, documents and replies that somebody else wrote: bounded before they are parsed."""

import re

_WHOLE = re.compile(r"[0-9]{1,16}", re.ASCII)
LARGEST = 10**15
"""Exact as a double, which Lua and JSON's readers know."""


def parse_whole(value: str | bytes | int | None, *, largest: int = LARGEST) -> int | None:
    """A whole number from 0 to `largest` in plain digits; None for anything else, however long."""
    if isinstance(value, bytes):
        value = value[:20].decode("ascii", errors="replace")
    if isinstance(value, str):
        value = int(value) if _WHOLE.fullmatch(value) else None
    if value is None or isinstance(value, bool) or not 0 <= value <= largest:
        return None
    return value
