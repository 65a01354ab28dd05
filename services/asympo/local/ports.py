"""Loopback ports for the services of this machine."""

import errno
import functools
import random
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from asympo.common.errors import BadSetting

_NUM_FALLBACKS = 20
_LOWEST_PORT, HIGHEST_PORT = 10_240, 65_535
"""Below are those of well-known services."""
_LEAST_PORTS = 1_000
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_held: list[socket.socket] = []
"""One for each port that this process has chosen, for as long as it lives."""


def is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether nobody listens there; BadSetting where this process may not either."""
    with socket.socket() as probe:
        # What uvicorn and gRPC do: a port in TIME_WAIT is free, one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            if error.errno == errno.EACCES:
                raise BadSetting(
                    f"this user may not listen on port {port} ({error.strerror}): choose one from 1024 on, "
                    "or give it the right to (CAP_NET_BIND_SERVICE)"
                ) from None
            raise BadSetting(f"cannot listen on {host}: {error.strerror}") from None
    return True


def free_port(*, avoid: frozenset[int] = frozenset()) -> int:
    """A port that nobody listens on, for a service that may listen on it much later.

    On Linux it is kept for that: no connection gets it from the system as its own end, and neither this
    process nor another one of ours is given it again while this one lives.
    """
    quiet = _quiet_ports()
    while True:
        port = _given_by_the_system() if quiet is None else random.SystemRandom().choice(quiet)
        if port in avoid or not is_free(port):
            continue
        is_ours, hold = _hold("port", port)
        if hold is not None:
            _held.append(hold)
        if is_ours:
            return port


@functools.cache
def _quiet_ports() -> range | None:
    """Those that the system gives to nobody by itself; None where it says of none, or of few."""
    try:
        first, last = map(int, _EPHEMERAL_PORTS.read_text().split())
    except OSError:
        return None
    for ports in (range(_LOWEST_PORT, first), range(last + 1, HIGHEST_PORT + 1)):
        if len(ports) >= _LEAST_PORTS:
            return ports
    return None


def _given_by_the_system() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, kw_only=True)
class PagePort:
    """Where a status page will be."""

    number: int
    note: str | None
    """A sentence if it is not the preferred one."""
    hold: socket.socket | None
    """Open for as long as no other run of this machine may choose it: its learner listens only later."""


def page_port(preferred: int, *, is_chosen: bool) -> PagePort:
    """The port of the status page. One that a person chose is not replaced: BadSetting names its setting."""
    last = preferred if is_chosen else preferred + _NUM_FALLBACKS
    for port in range(preferred, last + 1):
        is_ours, hold = _hold("page", port)
        if is_ours and is_free(port):
            moved = f"port {preferred} is in use, the status page is on port {port}"
            return PagePort(number=port, note=moved if port != preferred else None, hold=hold)
        if hold is not None:
            hold.close()
    if is_chosen:
        raise BadSetting(f"port {preferred} is in use: free it or give another as learner.http_port")
    raise BadSetting(f"ports {preferred} to {last} are in use: give a free one as learner.http_port")


def _hold(purpose: str, port: int) -> tuple[bool, socket.socket | None]:
    """Whether nobody else holds it for this purpose (Linux).

    By a name in the network's own namespace that dies with us.
    """
    if sys.platform != "linux":
        return True, None
    hold = socket.socket(socket.AF_UNIX)
    try:
        hold.bind(f"\0asympo-{purpose}-{port}")
    except OSError:
        hold.close()
        return False, None
    return True, hold


def require_free(port: int, *, setting: str) -> None:
    if not is_free(port):
        raise BadSetting(f"port {port} is in use: free it or give another as {setting}")
