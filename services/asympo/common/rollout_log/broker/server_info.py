"""Reading a broker's own description: is it new enough, and what may it lose."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asympo.common.errors import BrokerRefused

MIN_MAJOR = {"redis": 7, "valkey": 8}


LOAD_COUNTERS = (
    "used_cpu_user",
    "used_cpu_sys",
    "used_cpu_user_main_thread",
    "used_cpu_sys_main_thread",
    "total_commands_processed",
    "eventloop_cycles",
    "eventloop_duration_sum",
    "eventloop_duration_cmd_sum",
    "eventloop_duration_aof_sum",
)
"""Of INFO: CPU in seconds, durations of the event loop in microseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokerInfo:
    """What a broker says about itself."""

    server: str
    """"redis" or "valkey"."""
    version: str
    """Its own version."""
    mode: str
    """"standalone", "sentinel" or "cluster"."""
    aof: bool
    """Whether it keeps an append-only file."""
    appendfsync: str
    """"always", "everysec", "no", or "unknown" where CONFIG is withheld."""
    maxmemory_bytes: int
    """0 means no limit of its own."""
    maxmemory_policy: str
    """Must be "noeviction"."""
    used_memory_bytes: int
    """Memory of all data."""
    warnings: tuple[str, ...]
    """One sentence for each thing that may lose data, or let nothing be written."""

    @property
    def is_durable(self) -> bool | None:
        """Whether what is acknowledged is on disk; None where that cannot be seen."""
        if not self.aof:
            return False
        return None if self.appendfsync == "unknown" else self.appendfsync == "always"


def describe(info: Mapping[str, Any], config: Mapping[str, str], *, url: str) -> BrokerInfo:
    """Judges INFO and CONFIG replies; raises BrokerRefused for a server that is too old."""
    server = "valkey" if info.get("server_name") == "valkey" or "valkey_version" in info else "redis"
    version = str(info.get("valkey_version") or info.get("redis_version") or "0")
    match = re.match(r"\d+", version)
    if int(match[0] if match else 0) < MIN_MAJOR[server]:
        raise BrokerRefused(
            f"the broker at {url} is {server.capitalize()} {version}: use Redis {MIN_MAJOR['redis']} or "
            f"newer, or Valkey {MIN_MAJOR['valkey']} or newer"
        )
    aof = str(info.get("aof_enabled", 0)) == "1"
    appendfsync = str(config.get("appendfsync", "unknown"))
    policy = str(info.get("maxmemory_policy", "noeviction"))
    return BrokerInfo(
        server=server,
        version=version,
        mode=str(info.get("redis_mode") or info.get("server_mode") or "standalone"),
        aof=aof,
        appendfsync=appendfsync,
        maxmemory_bytes=int(info.get("maxmemory", 0)),
        maxmemory_policy=policy,
        used_memory_bytes=int(info.get("used_memory", 0)),
        warnings=(*_replica_warnings(info), *_warnings(aof=aof, appendfsync=appendfsync, policy=policy)),
    )


def _replica_warnings(info: Mapping[str, Any]) -> list[str]:
    if info.get("role") != "slave":
        return []
    primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
    return [
        f"the broker is a replica of {primary}: it refuses to append, or loses what it took when it follows "
        "its primary again; give the URL of the primary"
    ]


def _warnings(*, aof: bool, appendfsync: str, policy: str) -> list[str]:
    found = []
    if not aof:
        found.append(
            "the broker keeps no append-only file: everything since its last snapshot, possibly the "
            "whole run's log, is lost when it stops; set appendonly yes and appendfsync always"
        )
    elif appendfsync in ("everysec", "no"):
        lost = "about the last second" if appendfsync == "everysec" else "whatever the kernel had not written"
        found.append(
            f"the broker syncs its append-only file with appendfsync {appendfsync}: {lost} of acknowledged "
            "groups may be lost when it dies and is generated again; set appendfsync always"
        )
    if policy != "noeviction":
        found.append(
            f"the broker's maxmemory-policy is {policy}: under memory pressure it deletes unread groups and "
            "run state without notice; set maxmemory-policy noeviction"
        )
    return found


def load_counters(info: Mapping[str, Any]) -> dict[str, float]:
    """The counters of `LOAD_COUNTERS`, and `evalsha_…`; 0 for those the server does not have."""
    evalsha = info.get("cmdstat_evalsha") or {}
    found = {name: float(info.get(name, 0)) for name in LOAD_COUNTERS}
    calls, microseconds = (float(evalsha.get(name, 0)) for name in ("calls", "usec"))
    return {**found, "evalsha_calls": calls, "evalsha_microseconds": microseconds}
