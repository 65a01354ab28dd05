"""HTTP of a generator: health, metrics, status."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse

from asympo.common.errors import BadSetting
from asympo.generator.core import Generator


def build_api(*, generator: Generator, metrics_endpoint: Any) -> FastAPI:
    """The application; it only translates."""
    api = FastAPI(title="ASymPO generator", docs_url=None, redoc_url=None, openapi_url=None)

    @api.get("/livez")
    async def livez() -> PlainTextResponse:
        # Answered by the event loop that does the work: an answer proves that it turns.
        return PlainTextResponse("ok")

    @api.get("/readyz")
    async def readyz() -> PlainTextResponse:
        reason = generator.not_ready_reason
        return PlainTextResponse(reason or "ok", status_code=503 if reason else 200)

    @api.get("/v1/status")
    async def status() -> JSONResponse:
        return JSONResponse(generator.status())

    api.add_route("/metrics", metrics_endpoint)
    return api


class HttpServer(uvicorn.Server):
    """uvicorn in an event loop that is not its own, without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(api: FastAPI) -> HttpServer:
    """A server for `api`, to be run as `serve(sockets=[...])` and stopped through `should_exit`."""
    return HttpServer(
        uvicorn.Config(
            api,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; BadSetting when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise BadSetting(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another http_host or http_port"
        ) from error
    return listener
