"""What the services of a run say about themselves, over their HTTP endpoints."""

import json
import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TIMEOUT_SECONDS = 3.0


class HttpStatus:
    """JSON endpoints of one local service; None while it does not answer."""

    def __init__(self, *, host: str, port: int) -> None:
        # A service bound to every address is reached on loopback like the others.
        self.base_url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::', '') else host}:{port}"
        # Never through a proxy of the environment: these are our own processes.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> dict[str, Any] | None:
        try:
            with self._opener.open(self.base_url + path, timeout=_TIMEOUT_SECONDS) as answer:
                value = json.load(answer)
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None


@dataclass(kw_only=True)
class History:
    """The learner's metric rows, read as they appear; a resumed step replaces its earlier row."""

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)

    def read(self, learner: HttpStatus) -> list[dict[str, Any]]:
        """Fetches new rows; returns them in order."""
        after = max(self.rows, default=-1)
        answer = learner.get(f"/v1/history?after={after}")
        new = [row for row in (answer or {}).get("rows", []) if isinstance(row.get("step"), int)]
        self.rows.update({row["step"]: row for row in new})
        return sorted(new, key=lambda row: row["step"])

    @property
    def newest(self) -> dict[str, Any]:
        return self.rows[max(self.rows)] if self.rows else {}


@dataclass(kw_only=True)
class GeneratorTotals:
    """Counters of generators, kept over restarts of their processes."""

    _seen: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)

    def note(self, name: str, incarnation: int, status: Mapping[str, Any]) -> None:
        """Remembers the newest counters of one life of one generator."""
        totals = status.get("totals") or status
        counters = {key: value for key, value in totals.items() if isinstance(value, int)}
        self._seen.setdefault((name, incarnation), {}).update(counters)

    def total(self, counter: str) -> int:
        return sum(counters.get(counter, 0) for counters in self._seen.values())


def number(value: Any) -> float | None:
    """A finite number, or None: rows hold null where there was nothing to measure."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
