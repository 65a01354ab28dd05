"""JSON that somebody else wrote: bounded in size, depth and the length of its numbers."""

import json
import math
from typing import Any

_MAX_DIGITS = 20
_ESCAPED_HALF = "\\ud"
"""Begins the escape of half a surrogate pair, which is no text without the other."""


def parse_json(data: bytes | str, *, max_bytes: int) -> Any:
    """Its value; raises ValueError, and nothing else, with a half-sentence that says what is wrong."""
    if len(data) > max_bytes:
        raise ValueError(f"it has {len(data)} bytes, more than {max_bytes}")
    try:
        value = json.loads(data, parse_int=_bounded_int, parse_float=_finite, parse_constant=_no_constant)
        if _ESCAPED_HALF in (data.lower() if isinstance(data, str) else data.lower().decode()):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None


def parse_object(data: bytes | str, *, max_bytes: int) -> dict[str, Any]:
    """The same for what must be a JSON object."""
    value = parse_json(data, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _bounded_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("it holds a number that is not finite")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is not finite")
