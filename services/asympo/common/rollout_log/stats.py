"""Counting one run."""

import dataclasses

from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.broker.server_info import BrokerInfo
from asympo.common.rollout_log.run_state import state_of
from asympo.common.rollout_log.types import LogStats

_TEXTS = {"state_reason", "fence_holder"}
_FLAGS = {"is_exhausted", "is_fence_alive"}


class Stats:
    """Figures for people and metrics; nothing is decided by them."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def read(self) -> LogStats:
        """All figures of one instant; zeros for a run that does not exist."""
        flat = self._run.call("stats")
        found = {text(name): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
        values: dict[str, object] = {
            "state": state_of(found["state"]),
            "server_time_seconds": number(found["server_time_ms"]) / 1000,
            "bytes_used": sum(
                number(self._run.broker.command("MEMORY USAGE", self._run.key(noun), "SAMPLES", 5))
                for noun in ("log", "payloads")
            ),
        }
        for item in dataclasses.fields(LogStats):
            if item.name not in values:
                raw = found[item.name]
                plain = text(raw) if item.name in _TEXTS else number(raw)
                values[item.name] = bool(plain) if item.name in _FLAGS else plain
        return LogStats(**values)  # type: ignore[arg-type]

    def broker_info(self) -> BrokerInfo:
        """The broker; of a cluster the master that holds this run."""
        return self._run.broker.info(key=self._run.key("run"))
