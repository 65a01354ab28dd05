"""Numbers in free text."""

import re

# A minus after a word or a bracket is a subtraction; 7.5 is no integer, but "7." ends a sentence.
_INTEGER = re.compile(r"(?<![\d.])(?:(?<![\w)\]])-)?\d+(?!\d|\.\d)", re.ASCII)
_MAX_DIGITS = 100


def last_integer(text: str) -> int | None:
    """The last integer written in decimal digits; None when there is none, or it is absurdly long."""
    last = None
    for last in _INTEGER.finditer(text):  # noqa: B007
        pass
    if last is None or len(last.group()) > _MAX_DIGITS:
        return None
    return int(last.group())
