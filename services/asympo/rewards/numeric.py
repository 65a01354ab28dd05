"""Numbers in free text."""

import re

# A minus after a word or a bracket is a subtraction; 7.5 is no integer, but "7." ends a sentence.
_INTEGER = re.compile(r"(?<![\d.])(?:(?<![\w)\]])-)?\d+(?!\d|\.\d)", re.ASCII)
_MAX_DIGITS = 100


def last_integer(text: str) -> int | None:
    """The last integer written in decimal digits; None when there is none, or it is absurdly long."""
    numbers = _INTEGER.findall(text)
    return int(numbers[-1]) if numbers and len(numbers[-1]) <= _MAX_DIGITS else None
