"""Keeps repeats from filling a log, and counts what a process warns about.

What is the same sentence but for its numbers counts as one: a person wants to read it once, with a count.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asympo.common.redaction import redact_text

_MAX_KINDS = 200
_MAX_SHOWN = 10
_MAX_TEXT = 400
_BURST, _EVERY_SECONDS = 20, 10.0
"""So many warnings of one kind are logged, then one in so many seconds."""
_QUIET_BURST, _QUIET_EVERY_SECONDS = 600, 1.0
"""The same for lines that report and do not warn."""
_CONVERSION = re.compile(r"%[-#0 +]*[\d.*]*[a-zA-Z]")
_NUMBER = re.compile(r"\d+")


@dataclass(slots=True)
class _Kind:
    text: str
    level: int
    first_at: float
    last_at: float
    tokens: float
    count: int = 0
    num_left_out: int = 0


class LogWatch(logging.Filter):
    """A filter for a handler; `warnings` is what a status shows."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether this line is logged; the first one after a pause says how many were left out."""
        now, is_warning = self._clock(), record.levelno >= logging.WARNING
        burst, every = (_BURST, _EVERY_SECONDS) if is_warning else (_QUIET_BURST, _QUIET_EVERY_SECONDS)
        text = message_of(record)
        key = (record.name, _kind_of(record, text))
        with self._lock:
            kind = self._kinds.get(key)
            if kind is None:
                self._forget_oldest()
                kind = self._kinds[key] = _Kind(text, record.levelno, now, now, float(burst))
            # A clock that is set back must not silence what comes until it is as late again.
            passed = max(0.0, now - kind.last_at)
            kind.tokens = min(float(burst), kind.tokens + passed / every)
            kind.text, kind.last_at, kind.count = text[:_MAX_TEXT], now, kind.count + 1
            if kind.tokens < 1:
                kind.num_left_out += 1
                return False
            kind.tokens -= 1
            left_out, kind.num_left_out = kind.num_left_out, 0
        if left_out:
            record.msg, record.args = f"{text} ({left_out} more like this were left out)", None
        return True

    def warnings(self) -> list[dict[str, Any]]:
        """What was warned about, the most frequent first."""
        with self._lock:
            found = [kind for kind in self._kinds.values() if kind.level >= logging.WARNING]
            return [
                {
                    "text": redact_text(kind.text),
                    "level": logging.getLevelName(kind.level).lower(),
                    "count": kind.count,
                    "first_at_seconds": round(kind.first_at, 3),
                    "last_at_seconds": round(kind.last_at, 3),
                }
                for kind in sorted(found, key=lambda kind: -kind.count)[:_MAX_SHOWN]
            ]

    def _forget_oldest(self) -> None:
        if len(self._kinds) >= _MAX_KINDS:
            del self._kinds[min(self._kinds, key=lambda key: self._kinds[key].last_at)]


def message_of(record: logging.LogRecord) -> str:
    """Its text; of a malformed call of some library what there is, and the record is mended."""
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001  whatever the words of foreign code raise
        is_text = isinstance(record.msg, str)
        reason = f"{type(error).__name__}: {error}"
        text = str(record.msg) if is_text else f"a message that cannot be shown ({reason})"
        record.msg, record.args = text, None
        return text


def _kind_of(record: logging.LogRecord, text: str) -> str:
    template = str(record.msg)
    # "%s" alone says nothing about what was said.
    says_something = record.args and any(c.isalpha() for c in _CONVERSION.sub("", template))
    return template if says_something else _NUMBER.sub("#", text)[:200]
