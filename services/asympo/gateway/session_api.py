"""HTTP of sessions for whoever drives the agents: `/rl/…` and `/sessions/{id}/complete`."""

import json
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from asympo.gateway.agent_requests import PATHS
from asympo.gateway.api import AsciiResponse, GatewayApi, Refusal
from asympo.gateway.doors import Doors, NoDoor
from asympo.gateway.producers import Scope
from asympo.gateway.sessions import SessionGroup, SessionRefused, Sessions
from asympo.gateway.work import NoWork

_REWARD = ("reward", "functions")


class SessionApi:
    """Translates between HTTP and the sessions."""

    def __init__(self, *, api: GatewayApi, sessions: Sessions, doors: Doors) -> None:
        self._api = api
        self._sessions = sessions
        self._doors = doors

    async def start(self, request: Request) -> JSONResponse:
        """`POST /rl/start_session`: for a prompt of the task, or with `"own_prompt": true` for any."""
        producer = self._api.admit(request, Scope.SESSIONS)
        body = _only(await self._api.read_json(request), "num_sessions", "own_prompt", "wait_seconds")
        size, wait_seconds = body.get("num_sessions"), body.get("wait_seconds", 30)
        if size is not None and not isinstance(size, int):
            raise Refusal(400, "num_sessions: give a number")
        if not isinstance(wait_seconds, int | float) or not 0 <= wait_seconds <= 60:
            raise Refusal(400, "wait_seconds: give 0 to 60")
        is_own_prompt = body.get("own_prompt", False)
        if not isinstance(is_own_prompt, bool):
            raise Refusal(400, "own_prompt: give true or false")
        if not is_own_prompt:
            # A prompt that is leased while nobody can be asked would be blamed for it.
            try:
                await self._doors.wait_for_one(wait_seconds)
            except NoDoor:
                if not await self._sessions.is_over():
                    raise
        group = await self._sessions.start(
            producer,
            is_own_prompt=is_own_prompt,
            num_sessions=size,
            wait_seconds=float(wait_seconds),
            has_left=request.is_disconnected,
        )
        if isinstance(group, NoWork):
            status = 410 if group.reason == "run_ended" else 429
            answer = {"refusal": group.reason, "retry_after_seconds": group.retry_after_seconds}
            return AsciiResponse(answer, status_code=status)
        return AsciiResponse(self._started(request, group))

    async def set_reward(self, request: Request) -> JSONResponse:
        """`POST /rl/set_reward`: `{"session_id": …, "reward": 1.0}`."""
        body = _only(await self._api.read_json(request), "session_id", *_REWARD)
        self._reward(_session_id(body), body)
        return AsciiResponse({})

    async def end(self, request: Request) -> JSONResponse:
        """`POST /rl/end_session`: `{"session_id": …}`."""
        return self._end(_session_id(_only(await self._api.read_json(request), "session_id")))

    async def complete(self, request: Request, session_id: str) -> JSONResponse:
        """`POST /sessions/{id}/complete`: `{"reward": 1.0}`, and it is closed."""
        self._reward(session_id, _only(await self._api.read_json(request), *_REWARD))
        return self._end(session_id)

    async def status(self, session_id: str) -> JSONResponse:
        """`GET /sessions/{id}`: what became of it and its group."""
        session = self._sessions.session(session_id)
        group = session.group
        return AsciiResponse(
            {
                "turns": session.transcript.num_turns,
                "reward": session.reward,
                "closed": session.is_closed,
                "group": {"outcome": group.outcome, "failures": group.failures},
            }
        )

    async def unknown(self, request: Request) -> Response:
        """`POST /v1/…`: what neither agents nor producers ask."""
        raise Refusal(404, f"there is no {request.url.path}: a session answers {', '.join(sorted(PATHS))}")

    def _started(self, request: Request, group: SessionGroup) -> dict[str, Any]:
        base = str(request.base_url).rstrip("/")
        work = group.work
        return {
            "sessions": [
                {"session_id": each.session_id, "base_url": f"{base}/sessions/{each.session_id}/v1"}
                for each in group.sessions
            ],
            "session_seconds": round(group.deadline - time.monotonic(), 3),
            "group_id": work.lease.group_id if work else "",
            "index": work.lease.index if work else None,
            "prompt": work.text if work else "",
            "messages": json.loads(work.messages_json or "[]") if work else [],
        }

    def _reward(self, session_id: str, body: dict[str, Any]) -> None:
        reward = _number(body.get("reward"), said="reward: give a number")
        self._sessions.set_reward(session_id, reward, functions=_functions(body.get("functions", {})))

    def _end(self, session_id: str) -> JSONResponse:
        group = self._sessions.end(session_id)
        return AsciiResponse({"open": sum(not each.is_closed for each in group.sessions)})


def add_sessions(app: FastAPI, sessions: SessionApi) -> None:
    """The routes of sessions, beside those that are there."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        status = error.status if isinstance(error, SessionRefused) else 503
        return AsciiResponse({"error": {"message": str(error)}}, status_code=status)

    app.add_exception_handler(SessionRefused, refused)
    app.add_exception_handler(NoDoor, refused)
    app.add_api_route("/rl/start_session", sessions.start, methods=["POST"])
    app.add_api_route("/rl/set_reward", sessions.set_reward, methods=["POST"])
    app.add_api_route("/rl/end_session", sessions.end, methods=["POST"])
    app.add_api_route("/sessions/{session_id}", sessions.status)
    app.add_api_route("/sessions/{session_id}/complete", sessions.complete, methods=["POST"])
    app.add_route("/v1/{path:path}", sessions.unknown, methods=["POST"])


def _only(body: dict[str, Any], *names: str) -> dict[str, Any]:
    """The body; Refusal for a field that would be passed over."""
    for name in body:
        if name not in names:
            raise Refusal(400, f"{name[:80]}: there is no such field; there are {', '.join(names)}")
    return body


def _functions(values: Any) -> dict[str, float]:
    """Parts of a reward by name."""
    said = "functions: give an object of numbers"
    if not isinstance(values, dict):
        raise Refusal(400, said)
    return {name: _number(value, said=said) for name, value in values.items()}


def _number(value: Any, *, said: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(400, said)
    try:
        return float(value)
    except OverflowError:
        raise Refusal(400, said) from None


def _session_id(body: dict[str, Any]) -> str:
    session_id = body.get("session_id")
    if not isinstance(session_id, str):
        raise Refusal(400, "session_id: give the session's id")
    return session_id
