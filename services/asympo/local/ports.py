"""Loopback ports for the services of this machine."""

import errno
import socket
import sys
from dataclasses import dataclass

from asympo.common.errors import BadSetting

_NUM_FALLBACKS = 20


def is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        # What uvicorn and gRPC do: a port in TIME_WAIT is free, one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise BadSetting(f"cannot listen on {host}: {error.strerror}") from None
    return True


def free_port(*, avoid: frozenset[int] = frozenset()) -> int:
    """A port that nobody listens on now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in avoid:
            return port


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
        is_ours, hold = _hold(port)
        if is_ours and is_free(port):
            moved = f"port {preferred} is in use, the status page is on port {port}"
            return PagePort(number=port, note=moved if port != preferred else None, hold=hold)
        if hold is not None:
            hold.close()
    if is_chosen:
        raise BadSetting(f"port {preferred} is in use: free it or give another as learner.http_port")
    raise BadSetting(f"ports {preferred} to {last} are in use: give a free one as learner.http_port")


def _hold(port: int) -> tuple[bool, socket.socket | None]:
    """Whether no other run holds it, by a name in the network's own namespace that dies with us (Linux)."""
    if sys.platform != "linux":
        return True, None
    hold = socket.socket(socket.AF_UNIX)
    try:
        hold.bind(f"\0asympo-page-{port}")
    except OSError:
        hold.close()
        return False, None
    return True, hold


def require_free(port: int, *, setting: str) -> None:
    if not is_free(port):
        raise BadSetting(f"port {port} is in use: free it or give another as {setting}")
