"""Loopback ports for the services of this machine."""

import errno
import socket

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


def page_port(preferred: int, *, is_chosen: bool) -> tuple[int, str | None]:
    """The port of the status page, and a sentence if it is not the preferred one.

    A port that a person chose is not replaced: BadSetting names it and its setting.
    """
    if is_free(preferred):
        return preferred, None
    if is_chosen:
        raise BadSetting(f"port {preferred} is in use: free it or give another one as learner.http_port")
    for port in range(preferred + 1, preferred + 1 + _NUM_FALLBACKS):
        if is_free(port):
            return port, f"port {preferred} is in use, the status page is on port {port}"
    raise BadSetting(
        f"ports {preferred} to {preferred + _NUM_FALLBACKS} are in use: give a free one as learner.http_port"
    )


def require_free(port: int, *, setting: str) -> None:
    if not is_free(port):
        raise BadSetting(f"port {port} is in use: free it or give another one as {setting}")
