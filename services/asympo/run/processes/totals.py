"""Counts of a run on this machine, summed over every time it was started."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Zero before the first start."""

    wall_seconds: float = 0.0
    peak_memory_bytes: int = 0
    """Largest sum over all processes at one moment."""
    memory_kind: str = "pss"
    """How that was counted: pss shares pages out, rss counts them for each process."""
    reloads: int = 0
    reload_pause_seconds: float = 0.0
    """Of all reloads, in which an engine sampled nothing."""
    probe_failures: int = 0
    requests_lost: int = 0
    """Responses in flight at a reload that ended without a full result."""
    restarts: int = 0
    starts: int = 0

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def plus(
        self,
        *,
        wall_seconds: float,
        peak_memory_bytes: int,
        memory_kind: str,
        reloads: int,
        reload_pause_seconds: float,
        probe_failures: int,
        requests_lost: int,
        restarts: int,
    ) -> "Totals":
        """With one more start of the run on top."""
        is_new_peak = peak_memory_bytes > self.peak_memory_bytes
        return Totals(
            wall_seconds=self.wall_seconds + wall_seconds,
            peak_memory_bytes=max(self.peak_memory_bytes, peak_memory_bytes),
            memory_kind=memory_kind if is_new_peak else self.memory_kind,
            reloads=self.reloads + reloads,
            reload_pause_seconds=self.reload_pause_seconds + reload_pause_seconds,
            probe_failures=self.probe_failures + probe_failures,
            requests_lost=self.requests_lost + requests_lost,
            restarts=self.restarts + restarts,
            starts=self.starts + 1,
        )
