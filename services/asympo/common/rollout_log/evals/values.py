"""Values out of JSON that somebody else wrote."""

import math
from typing import Any


def number(value: Any) -> float:
    """Finite; raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def whole(value: Any) -> int:
    """Zero or more; raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return value
