"""The HTTP server of every service: bounded, on a socket bound beforehand, without signal handlers."""

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from asympo.common.errors import BadSetting

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512
"""At a time, of one server: each costs a descriptor that storage and broker need as well."""
MAX_TURNED_AWAY = 64
"""Connections beyond those, at a time: each is answered that all are busy."""
HEADER_SECONDS = 10.0
"""Within which a new connection has to have asked for something."""
DRAIN_SECONDS = 2.0
"""How long answers under way may take at a stop, unless a service says otherwise."""

_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_FULL = PlainTextResponse(
    "all connections are busy: ask again\n", 503, headers={"retry-after": "1", "connection": "close"}
)
_ANY_HOST_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked by orchestrators and scrapers under the address of the pod; they hold nothing worth rebinding for."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing, and a link on any page may lead here."""

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?)*\Z"
)


class BoundedConnection(asyncio.Protocol):
    """A connection of uvicorn that is closed when it asks for nothing: after a while, or among too many.

    Where all of those ask, whoever comes is told to come again.
    """

    app: ASGIApp
    connections: set[Any]
    cycle: Any
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn narrows it
        super().connection_made(transport)
        # The loop's own clock stands still while it accepts many.
        self._since = time.monotonic()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()
        self.loop.call_later(HEADER_SECONDS, self._close_if_silent)

    def _make_room(self) -> None:
        every = [each for each in self.connections if isinstance(each, BoundedConnection)]
        admitted = [each for each in every if each.app is not _FULL]
        if len(admitted) <= MAX_CONNECTIONS:
            return
        # The one that has been idle for longest makes room: many that ask for nothing keep nobody out.
        idlest = min(admitted, key=lambda each: (each._is_asking, each._since))
        if idlest is not self:
            idlest.transport.close()
            return
        log.warning("All of %d connections are busy: a new one is answered 503", MAX_CONNECTIONS)
        self.app = _FULL
        turned_away = [each for each in every if each.app is _FULL and not each.transport.is_closing()]
        if len(turned_away) > MAX_TURNED_AWAY:
            min(turned_away, key=lambda each: each._since).transport.close()

    @property
    def _is_asking(self) -> bool:
        return self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class _H11Connection(BoundedConnection, H11Protocol):
    """Parsed in Python."""


class QuietServer(uvicorn.Server):
    """uvicorn in an event loop or thread that is not its own; stopped through `should_exit`."""

    def __init__(
        self,
        api: ASGIApp,
        *,
        connection: type[asyncio.Protocol] = _H11Connection,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                api,
                http=connection,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=drain_seconds,  # type: ignore[arg-type]  # it waits for any number
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp,
    listener: socket.socket,
    *,
    connection: type[asyncio.Protocol] = _H11Connection,
    drain_seconds: float = DRAIN_SECONDS,
) -> AsyncIterator[None]:
    """The application answers on the bound socket meanwhile, in the running event loop.

    After that it finishes what it has been asked, for at most so many seconds.
    """
    server = QuietServer(app, connection=connection, drain_seconds=drain_seconds)
    with listener:
        task = asyncio.ensure_future(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await task


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; BadSetting when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it. An answer is written as a head and a body, and without it the body waits 40 ms
    # for the head's acknowledgement: asyncio sees to that only for sockets that name their protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise BadSetting(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another http_host or http_port"
        ) from error
    return listener


class HostCheck:
    """Refuses what a stranger's page makes a browser send; adds the security headers to all other answers.

    Such a page can point its own name at 127.0.0.1 and then read whatever a local server answers (DNS
    rebinding): the Host header still holds that name. Without it the page can send a POST and not read the
    answer: the header Origin says where it comes from.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: frozenset[str]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = _without_port(headers.get("host", ""))
        if scope["path"] not in _ANY_HOST_PATHS and not self._is_allowed(host):
            log.warning("Refused a request for host %r", host)
            text = f"host {host!r} is not allowed; use 127.0.0.1 or add the name to allowed_hosts\n"
            await PlainTextResponse(text, status_code=421)(scope, receive, send)
            return
        if scope.get("method") not in _SAFE_METHODS and not self._is_from_here(headers):
            log.warning("Refused a request that a page of %r made a browser send", headers.get("origin"))
            text = "a page of another site may not send this; send it from 127.0.0.1, or without a browser\n"
            await PlainTextResponse(text, status_code=403)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _is_from_here(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") != "cross-site"
        return self._is_allowed(_without_port(origin.rpartition("//")[2]))

    def _is_allowed(self, host: str) -> bool:
        if host == "localhost" or host.endswith(".localhost") or host in self._allowed_hosts:
            return True
        address = _address(host)
        return address is not None and (address.is_loopback or str(address) in self._allowed_hosts)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _without_port(header: str) -> str:
    """The host of a Host header in lower case, without port and final dot; brackets of IPv6 stay."""
    host = re.sub(r":\d{0,5}\Z", "", header.strip().lower())
    return host.removesuffix(".")


def checked_host(host: str) -> str:
    """A host name in the form that is compared; raises BadSetting if it is not one."""
    name = host.strip().lower().removesuffix(".")
    address = _address(name)
    if address is not None:
        return str(address)
    if not _HOST_NAME.match(name):
        raise BadSetting(
            f"allowed_hosts holds {host!r}, which is not a host name; give the name alone, without scheme, "
            "port or wildcard, such as 'asympo.example.com'"
        )
    return name
