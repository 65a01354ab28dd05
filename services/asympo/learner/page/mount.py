"""Serves the status page from the package and guards it: closed list of files, strict headers, Host check."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response

from asympo.common.http_server import HostCheck, checked_host

_CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}


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
    hosts = frozenset(checked_host(host) for host in allowed_hosts)
    files = _load_files()

    async def page(request: Request) -> Response:
        return _reply(request, files["index.html"])

    async def page_file(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        return PlainTextResponse("no such file\n", status_code=404) if file is None else _reply(request, file)

    app.add_route("/", page, methods=["GET"], include_in_schema=False)
    app.add_route("/page/{name}", page_file, methods=["GET"], include_in_schema=False)
    app.add_middleware(HostCheck, allowed_hosts=hosts)


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
