"""What the services of a run say about themselves, over their HTTP endpoints."""

import http.client
import json
import math
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from asympo.run.audit import effective_steps, read_rows

_TIMEOUT_SECONDS = 3.0


class HttpStatus:
    """JSON endpoints of one local service; None while it does not answer."""

    def __init__(self, *, host: str, port: int) -> None:
        # A service bound to every address is reached on loopback like the others.
        self.base_url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::', '') else host}:{port}"
        # Never through a proxy of the environment: these are our own processes.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @classmethod
    def of(cls, settings: Any) -> Self:
        """Of a service with these settings."""
        return cls(host=settings.http_host, port=settings.http_port)

    def get(self, path: str) -> dict[str, Any] | None:
        try:
            with self._opener.open(self.base_url + path, timeout=_TIMEOUT_SECONDS) as answer:
                value = json.load(answer)
        except (OSError, ValueError, http.client.HTTPException):
            # Nobody there, or another program on that port, whatever it speaks.
            return None
        return value if isinstance(value, dict) else None


@dataclass(kw_only=True)
class History:
    """The learner's metric rows, read as they appear."""

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    _fence: Any = None

    def read(self, learner: HttpStatus, *, fence: Any) -> list[dict[str, Any]]:
        """Fetches new rows and returns them in order; a new owner's rows replace all that were known."""
        if fence != self._fence:
            # Steps that were not committed are done again under the new fence.
            self._fence, known = fence, set(self.rows)
            self.rows = {}
        else:
            known = set(self.rows)
        answer = learner.get(f"/v1/history?after={max(self.rows, default=-1)}")
        read = [row for row in (answer or {}).get("rows", []) if isinstance(row.get("step"), int)]
        self.rows.update({row["step"]: row for row in read})
        return sorted((row for row in read if row["step"] not in known), key=lambda row: row["step"])

    def complete(self, metrics_file: Path) -> list[dict[str, Any]]:
        """Adds the steps that a learner wrote down and nobody could ask it for any more."""
        known, written = set(self.rows), effective_steps(read_rows(metrics_file))
        self.rows.update({step: dict(row) for step, row in written.items()})
        return [self.rows[step] for step in sorted(set(self.rows) - known)]

    @property
    def in_order(self) -> list[dict[str, Any]]:
        return [self.rows[step] for step in sorted(self.rows)]


@dataclass(kw_only=True)
class GeneratorTotals:
    """Counters of generators, kept over restarts of their processes."""

    _seen: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)

    def note(self, name: str, incarnation: int, status: Mapping[str, Any]) -> None:
        """Remembers the newest counters of one life of one generator."""
        counters = {key: value for key, value in status.items() if type(value) in (int, float)}
        self._seen.setdefault((name, incarnation), {}).update(counters)

    def total(self, counter: str) -> float:
        return sum(counters.get(counter, 0) for counters in self._seen.values())


def number(value: Any) -> float | None:
    """A finite number, or None: rows hold null where there was nothing to measure."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
