"""HTTP of an evaluator: health, metrics, status."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse

from asympo.common.http_server import HostCheck
from asympo.common.logs.watch import LogWatch
from asympo.evaluator.loop import EvaluatorStatus


def build_api(progress: EvaluatorStatus, *, run: str, log_watch: LogWatch, metrics_endpoint: Any) -> FastAPI:
    """The application; it only translates."""
    api = FastAPI(title="ASymPO evaluator", docs_url=None, redoc_url=None, openapi_url=None)

    @api.get("/livez")
    async def livez() -> PlainTextResponse:
        return PlainTextResponse("ok")

    @api.get("/readyz")
    async def readyz() -> PlainTextResponse:
        is_ready = progress.state != "starting"
        return PlainTextResponse("ok" if is_ready else progress.state, status_code=200 if is_ready else 503)

    @api.get("/v1/status")
    async def status() -> JSONResponse:
        return JSONResponse({"run": run, **progress.status(), "warnings": log_watch.warnings()})

    api.add_route("/metrics", metrics_endpoint)
    api.add_middleware(HostCheck, allowed_hosts=frozenset())
    return api
