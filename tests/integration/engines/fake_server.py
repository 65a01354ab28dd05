"""A server of OpenAI's protocol that answers what a test tells it to."""

import asyncio
import threading
from typing import Any

from asympo.common.http_server import QuietServer, bind
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse


class FakeServer:
    """Says `text` to each request, with `choice` and `usage` beside it."""

    def __init__(self) -> None:
        self.models = ["only"]
        self.text = "12"
        self.choice: dict[str, Any] = {"finish_reason": "stop"}
        self.num_tokens = 2
        self.failures: list[tuple[int, str]] = []
        """Status and message of the next answers."""
        self.refuses_extras = False
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Route and body of each request."""
        self.keys: list[str] = []
        self.limits: list[str] = []
        """Seconds that the client gives each request."""
        self.has_reload = True
        self.is_frozen = False
        app = FastAPI()
        app.add_api_route("/v1/models", self._list, methods=["GET"])
        app.add_api_route("/{route:path}", self._answer, methods=["POST"])
        listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        self._server = QuietServer(app)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._server.serve(sockets=[listener])), daemon=True
        )
        self._thread.start()

    def bodies(self, route: str) -> list[dict[str, Any]]:
        return [body for at, body in self.asked if at == route]

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    async def _list(self) -> Any:
        if self.failures:
            return self._fail()
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}

    async def _answer(self, route: str, request: Request) -> Any:
        body = await request.json()
        self.asked.append((route, body | dict(request.query_params)))
        self.keys.append(request.headers.get("authorization", ""))
        self.limits.append(request.headers.get("x-stainless-read-timeout", ""))
        if self.failures:
            return self._fail()
        if not route.startswith("v1/"):
            self.is_frozen = route.startswith("pause") or (self.is_frozen and route != "resume")
            return {"success": True} if self.has_reload else JSONResponse({}, status_code=404)
        if self.refuses_extras and "top_k" in body:
            return JSONResponse({"error": {"message": "Unrecognized argument: top_k"}}, status_code=400)
        while self.is_frozen and not await request.is_disconnected():
            await asyncio.sleep(0.01)
        said = {"message": {"role": "assistant", "content": self.text}} if "chat" in route else {}
        choice = {"index": 0, "text": self.text} | said | self.choice
        return {"choices": [choice], "usage": {"completion_tokens": self.num_tokens}}

    def _fail(self) -> JSONResponse:
        status, message = self.failures.pop(0)
        return JSONResponse({"error": {"message": message}}, status_code=status)
