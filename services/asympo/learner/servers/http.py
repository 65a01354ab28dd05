"""HTTP of the learner: page, health, metrics, status, history, samples."""

import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from asympo.common.http_server import QuietServer, bind
from asympo.common.jsonl import to_json
from asympo.learner.control import LearnerControl
from asympo.learner.page.mount import mount_page
from asympo.learner.servers.samples import add_samples


def build_api(
    *,
    learner: LearnerControl,
    why_not_alive: Callable[[], str],
    metrics_endpoint: Any,
    allowed_hosts: tuple[str, ...] = (),
) -> FastAPI:
    """The application; it only translates. `why_not_alive` answers with an empty text while all is well."""
    api = FastAPI(title="ASymPO learner", docs_url=None, redoc_url=None, openapi_url=None)

    @api.get("/livez")
    async def livez() -> PlainTextResponse:
        reason = why_not_alive()
        return PlainTextResponse(reason or "ok", status_code=503 if reason else 200)

    @api.get("/readyz")
    async def readyz() -> PlainTextResponse:
        is_ready = learner.is_ready
        return PlainTextResponse("ok" if is_ready else learner.state, status_code=200 if is_ready else 503)

    @api.get("/v1/status")
    async def status() -> Response:
        return _json(learner.status())

    @api.get("/v1/history")
    async def history(after: int = -1) -> Response:
        return _json({"rows": learner.history(after=after)})

    @api.get("/v1/evals")
    async def evals() -> Response:
        return _json({"evals": learner.evals.to_dicts()})

    add_samples(api, samples=lambda: learner.samples, evaluated=lambda: learner.evals.samples)

    # A route, not a mount: a mount answers the path without slash with a redirect.
    api.add_route("/metrics", metrics_endpoint)
    mount_page(api, allowed_hosts=allowed_hosts)
    return api


def _json(value: Any) -> Response:
    # Not FastAPI's own: numbers that are not finite are null in every JSON of ours.
    return Response(to_json(value), media_type="application/json")


class HttpServer:
    """The application on a socket, in a thread of its own."""

    def __init__(self, *, api: FastAPI, host: str, port: int) -> None:
        """Binds at once; BadSetting when the address is taken or not ours."""
        self._socket = bind(host, port)
        self.port = int(self._socket.getsockname()[1])
        self._server = QuietServer(api)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="http", daemon=True
        )

    def start(self) -> None:
        """Serves until stopped."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, giving requests in flight a moment."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(5.0)
        self._socket.close()
