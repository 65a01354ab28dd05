"""Serves the status page from the package and guards it: closed list of files, strict headers, Host check."""

import hashlib
import ipaddress
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from fastapi import FastAPI, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asympo.common.errors import BadSetting

log = logging.getLogger(__name__)

_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
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
_ANY_HOST_PATHS = frozenset({"/livez", "/readyz", "/metrics"})
"""Asked by orchestrators and scrapers under the address of the pod; they hold nothing worth rebinding for."""

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?)*\Z"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PageFile:
    """One file of the page, held in memory."""

    content: bytes
    content_type: str
    etag: str


def mount_page(app: FastAPI, *, allowed_hosts: Iterable[str] = ()) -> None:
    """Serve the page at `/`, its files under `/page/`, and check the Host of every request to `app`.

    `allowed_hosts` are the names, without port, under which the page may be asked for beside the loopback
    ones. Call it before the application starts. Raises BadSetting for a name that is none.
    """
    hosts = frozenset(_checked_host(host) for host in allowed_hosts)
    files = _load_files()

    async def page(request: Request) -> Response:
        return _reply(request, files["index.html"])

    async def page_file(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        return PlainTextResponse("no such file\n", status_code=404) if file is None else _reply(request, file)

    app.add_route("/", page, methods=["GET"], include_in_schema=False)
    app.add_route("/page/{name}", page_file, methods=["GET"], include_in_schema=False)
    app.add_middleware(HostCheck, allowed_hosts=hosts)


class HostCheck:
    """Refuses requests whose Host is neither loopback nor allowed; adds the security headers to the others.

    A stranger's page can point its own name at 127.0.0.1 and then read whatever a local server answers (DNS
    rebinding); the Host header still holds the stranger's name.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: frozenset[str]) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host = _without_port(Headers(scope=scope).get("host", ""))
        if scope["path"] not in _ANY_HOST_PATHS and not self._is_allowed(host):
            log.warning("Refused a request for host %r", host)
            text = f"host {host!r} is not allowed; use 127.0.0.1 or add the name to allowed_hosts\n"
            await PlainTextResponse(text, status_code=421)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)

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


def _checked_host(host: str) -> str:
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


def _load_files() -> dict[str, PageFile]:
    files = {}
    for entry in resources.files("asympo.learner.page").iterdir():
        content_type = _CONTENT_TYPES.get(entry.name.rpartition(".")[2])
        if content_type is not None:
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[entry.name] = PageFile(content=content, content_type=content_type, etag=etag)
    return files


def _reply(request: Request, file: PageFile) -> Response:
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.content_type)
