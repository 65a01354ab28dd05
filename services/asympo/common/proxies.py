"""A proxy of the environment is for the world outside: not for this machine, not for our cluster."""

import ipaddress
from collections.abc import MutableMapping
from urllib.parse import urlsplit

_OWN_NAMES = ("localhost", ".svc", ".cluster.local", ".local", ".internal")
_OWN_ADDRESSES = ("127.0.0.1", "::1")
DIRECT_CHANNEL = (("grpc.enable_http_proxy", 0),)
"""Options of every gRPC channel: only our own services are called that way."""


def pass_by(environ: MutableMapping[str, str]) -> None:
    """For this process and all it starts: own names are added to those that need no proxy."""
    for name in ("no_proxy", "NO_PROXY"):
        given = [part.strip() for part in environ.get(name, environ.get(name.swapcase(), "")).split(",")]
        if "*" in given:
            continue
        environ[name] = ",".join(dict.fromkeys([*filter(None, given), *_OWN_NAMES, *_OWN_ADDRESSES]))


def is_own(url: str) -> bool:
    """Whether an address is of this machine or of our cluster: loopback, private, a name without a domain."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_OWN_NAMES)
    return address.is_loopback or address.is_private or address.is_link_local
