"""HTTP of a gateway: groups in, prompts out, health, metrics."""

import asyncio
import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from asympo.common.errors import AsympoError, BadSetting, InvalidRecord
from asympo.common.rollout_log.broker.calls import Calls
from asympo.gateway.bodies import GroupBody, messages_of, read_group, to_wire
from asympo.gateway.core import UNAVAILABLE, Answer, Gateway
from asympo.gateway.metrics import GatewayMetrics
from asympo.gateway.producers import NotAllowed, Producer, Producers, Scope
from asympo.gateway.work import Granted

MAX_GROUPS = 1024
"""Of one request."""
_WAIT = ("no_capacity", "over_share", "paused", "not_started")


class Refusal(AsympoError):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class AsciiResponse(JSONResponse):
    """JSON in ASCII: a text that quotes a caller's lone surrogate can be sent as well."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


class GatewayApi:
    """Translates between HTTP and the one core object."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        producers: Producers,
        calls: Calls,
        metrics: GatewayMetrics,
        max_body_bytes: int,
        slot_wait_seconds: float,
    ) -> None:
        self._gateway = gateway
        self._producers = producers
        self._calls = calls
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._slot_wait_seconds = slot_wait_seconds

    async def rollouts(self, request: Request) -> JSONResponse:
        """`POST /v1/rollouts`: `{"groups": [...]}`, or one group."""
        producer = self.admit(request, Scope.SUBMIT)
        body = await self.read_json(request)
        groups = body.get("groups", [body])
        if not isinstance(groups, list) or not 1 <= len(groups) <= MAX_GROUPS:
            raise Refusal(400, f"groups: give a list of 1 to {MAX_GROUPS}")
        answers = await asyncio.gather(*(self._submit(producer, group) for group in groups))
        is_full = all(answer.outcome in _WAIT for answer in answers)
        results = [
            {"group_id": answer.group_id, "outcome": answer.outcome, "reason": answer.reason}
            for answer in answers
        ]
        headers = {"retry-after": "1"} if is_full else {}
        return AsciiResponse({"results": results}, status_code=429 if is_full else 200, headers=headers)

    async def get_work(self, request: Request) -> JSONResponse:
        """`POST /v1/work`: `{"wait_seconds": 10}`."""
        producer = self.admit(request, Scope.WORK)
        body = await self.read_json(request)
        wait_seconds, step = body.get("wait_seconds", 0), body.get("policy_step")
        if not isinstance(wait_seconds, int | float) or not 0 <= wait_seconds <= 60:
            raise Refusal(400, "wait_seconds: give 0 to 60")
        if step is not None and (not isinstance(step, int) or step < 0):
            raise Refusal(400, "policy_step: give a step, 0 or more")
        found = await self._gateway.get_work(
            producer,
            wait_seconds=float(wait_seconds),
            policy_step=step,
            has_left=request.is_disconnected,
        )
        if not isinstance(found, Granted):
            answer = {"refusal": found.reason, "retry_after_seconds": found.retry_after_seconds}
            return AsciiResponse(answer, status_code=410 if found.reason == "run_ended" else 429)
        return AsciiResponse(
            {
                "group_id": found.lease.group_id,
                "lease_token": found.lease.token,
                "expires_in_seconds": found.lease.expires_in_seconds,
                "prompt": {"text": found.text, "token_ids": list(found.token_ids)},
                "messages": json.loads(found.messages_json or "[]"),
                "group_size": self._gateway.parts.config.group_size,
            }
        )

    async def renew_work(self, request: Request) -> JSONResponse:
        """`POST /v1/work/renew`: `{"lease_tokens": [...], "handed_back": [...]}`."""
        producer = self.admit(request, Scope.WORK)
        body = await self.read_json(request)
        lists = [body.get(name, []) for name in ("lease_tokens", "handed_back")]
        if not all(
            isinstance(each, list) and all(isinstance(token, str) for token in each) for each in lists
        ):
            raise Refusal(400, "lease_tokens, handed_back: give lists of tokens")
        lost = await self._gateway.renew_work(producer, keep=lists[0], hand_back=lists[1])
        return AsciiResponse({"lost": lost})

    async def policy(self, request: Request) -> JSONResponse:
        """`GET /v1/policy`: the newest one; 404 before the first."""
        self.admit(request, Scope.WATCH)
        newest = await self._calls.run(self._gateway.parts.run_log.policies.latest)
        if newest is None:
            raise Refusal(404, "no policy has been published yet")
        return AsciiResponse({"step": newest.step, "fence": newest.fence, "manifest_digest": newest.digest})

    def admit(self, request: Request, scope: Scope) -> Producer:
        """Who calls; raises NotAllowed."""
        try:
            return self._producers.admit(request.headers.get("authorization", ""), scope)
        except NotAllowed:
            self._metrics.count_refused_call()
            raise

    async def read_json(self, request: Request) -> dict[str, Any]:
        """The body as an object, no larger than allowed."""
        content = await read_body(request.receive, max_bytes=self._max_body_bytes)
        try:
            body = json.loads(content or b"{}")
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refusal(400, "the body is not a JSON object")
        return body

    async def _submit(self, producer: Producer, value: Any) -> Answer:
        given = value.get("group_id", "") if isinstance(value, dict) else ""
        try:
            body = read_group(value)
            group = to_wire(body, rendered=await self._rendered(body))
        except (InvalidRecord, BadSetting) as error:
            return self._gateway.refuse(producer, str(given), str(error))
        return await self._gateway.submit(
            producer, group, lease_token=body.lease_token, wait_seconds=self._slot_wait_seconds
        )

    async def _rendered(self, body: GroupBody) -> tuple[list[int], str] | None:
        messages = messages_of(body)
        if not messages:
            return None
        return await self._calls.run(self._gateway.parts.work.text.messages, messages)


async def read_body(receive: Receive, *, max_bytes: int) -> bytes:
    """All of a request's body, no larger than allowed; raises Refusal, or ClientDisconnect."""
    content, is_whole = b"", False
    chunks: list[bytes] = []
    size = 0
    while not is_whole:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        content = message.get("body", b"")
        size += len(content)
        if size > max_bytes:
            raise Refusal(413, f"the body has more than {max_bytes} bytes: send fewer groups at a time")
        chunks.append(content)
        is_whole = not message.get("more_body", False)
    return content if len(chunks) == 1 else b"".join(chunks)


def build_api(api: GatewayApi, *, gateway: Gateway, metrics_endpoint: Any) -> FastAPI:
    """The application; it only translates."""
    app = FastAPI(title="ASymPO gateway", docs_url=None, redoc_url=None, openapi_url=None)

    async def livez() -> PlainTextResponse:
        return PlainTextResponse("ok")

    async def readyz() -> PlainTextResponse:
        reason = gateway.not_ready_reason
        return PlainTextResponse(reason or "ok", status_code=503 if reason else 200)

    async def refused(request: Request, error: Exception) -> JSONResponse:
        status = _status(error)
        headers = {"www-authenticate": "Bearer"} if status == 401 else {}
        return AsciiResponse({"error": {"message": str(error)}}, status_code=status, headers=headers)

    for kind in (Refusal, NotAllowed, *UNAVAILABLE, BadSetting):
        app.add_exception_handler(kind, refused)
    app.add_api_route("/livez", livez)
    app.add_api_route("/readyz", readyz)
    app.add_api_route("/v1/rollouts", api.rollouts, methods=["POST"])
    app.add_api_route("/v1/work", api.get_work, methods=["POST"])
    app.add_api_route("/v1/work/renew", api.renew_work, methods=["POST"])
    app.add_api_route("/v1/policy", api.policy)
    app.add_route("/metrics", metrics_endpoint)
    return app


def _status(error: Exception) -> int:
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, NotAllowed):
        return 403 if error.is_known else 401
    return 503 if isinstance(error, UNAVAILABLE) else 500
