"""HTTP of a generator: health, metrics, status."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse

from asympo.common.http_server import HostCheck
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
    api.add_middleware(HostCheck, allowed_hosts=frozenset())
    return api
