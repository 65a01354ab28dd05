"""What agents ask all the time: `POST /sessions/{id}/v1/…`, answered before the application's own routes."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import from_json, to_json
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from asympo.gateway.api import AsciiResponse, Refusal, read_body
from asympo.gateway.capture import BadAnswer, TurnReader
from asympo.gateway.door_connections import DoorAnswer
from asympo.gateway.doors import Doors, NoDoor, SlowDoor
from asympo.gateway.sessions import Session, SessionRefused, Sessions

log = logging.getLogger(__name__)

PATHS = frozenset({"chat/completions", "completions", "responses"})
"""What an agent may ask: those of which the engine says the token ids."""
SESSION_HEADER = "x-session-id"
"""Names the session where all of them are asked at one address."""
_SESSION_HEADER = SESSION_HEADER.encode()


class _Whole:
    """What an engine says, sent as it is."""

    __slots__ = ("_content", "_status")

    def __init__(self, content: bytes, status: int) -> None:
        self._content = content
        self._status = status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = str(len(self._content)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._content})


class AgentRequests:
    """The application, and the agents' requests in front of it, past its middleware and list of routes."""

    def __init__(
        self, app: ASGIApp, *, sessions: Sessions, doors: Doors, model_name: str, max_body_bytes: int
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._doors = doors
        self._model_name = model_name
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _asked(scope)
        if asked is None:
            await self._app(scope, receive, send)
            return
        answer: ASGIApp
        try:
            answer = await self._answer(*asked, receive)
        except (Refusal, SessionRefused) as error:
            answer = _refused(error.status, error)
        except NoDoor as error:
            answer = _refused(503, error)
        except SlowDoor as error:
            answer = _refused(504, error)
        except ClientDisconnect:
            return
        await answer(scope, receive, send)

    async def _answer(self, session_id: str, path: str, receive: Receive) -> ASGIApp:
        """As the engine answers; the turn is noted."""
        if path not in PATHS:
            raise Refusal(404, f"a session answers {', '.join(sorted(PATHS))}, not {path}")
        if not session_id:
            raise Refusal(400, f"give the session's id in the header {SESSION_HEADER}, or use its base_url")
        session = self._sessions.open_session(session_id)
        body = _read_request(await read_body(receive, max_bytes=self._max_body_bytes))
        body["model"] = self._model_name
        body["enable_response_messages" if path == "responses" else "return_token_ids"] = True
        is_streamed = bool(body.get("stream"))
        answer = await self._ask(session, path, body, is_streamed=is_streamed, receive=receive)
        if is_streamed and answer.status == 200:
            events = _relayed(answer, session, ends_with_done=path != "responses")
            return StreamingResponse(events, media_type="text/event-stream")
        content = await answer.whole()
        if answer.status == 200:
            reader = TurnReader()
            try:
                reader.read_whole(content)
            except BadAnswer as error:
                raise Refusal(502, str(error)) from None
            _note(session, reader)
        return _Whole(content, answer.status)

    async def _ask(
        self, session: Session, path: str, body: dict[str, Any], *, is_streamed: bool, receive: Receive
    ) -> DoorAnswer:
        """The door's answer; raises ClientDisconnect, and asks no more, once the agent has left."""
        asking = asyncio.ensure_future(
            self._doors.ask(
                *(session.session_id, path, to_json(body)),
                is_streamed=is_streamed,
                max_seconds=session.group.deadline - time.monotonic(),
            )
        )
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not leaving.done():
                return await asking
            if asking.done():
                asking.result().close()
            raise ClientDisconnect
        finally:
            asking.cancel()
            leaving.cancel()
            await asyncio.wait({asking, leaving})


async def _left(receive: Receive) -> None:
    """Until the caller has left; its request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _relayed(answer: DoorAnswer, session: Session, *, ends_with_done: bool) -> AsyncIterator[bytes]:
    """The stream as it comes; the turn is noted before its last piece is passed on.

    One that breaks off, makes no sense, or takes longer than its session ends with an error in its place.
    """
    reader, rest = TurnReader(), b""

    def read(line: bytes) -> None:
        event = line.removeprefix(b"data:").strip()
        if event == line or not event:
            return
        is_end = event == b"[DONE]"
        if not is_end:
            reader.read_json(event)
        # The engine says its last word only once the policy is proven: now the turn counts.
        if is_end or (not ends_with_done and reader.turn):
            _note(session, reader)

    async with answer:
        # Not by its own lines: they may not be as long as an event with the ids of a long prompt.
        try:
            async for chunk in answer.pieces():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    read(line)
                yield chunk
        except (OSError, BadAnswer) as error:
            reason = str(error) if isinstance(error, BadAnswer) else f"the answer was cut off: {error}"
            log.warning("A session's stream ends early: %s", reason)
            # What has come of an event that is not whole is none.
            yield b"\n\ndata: " + to_json({"error": {"message": reason}}) + b"\n\n"


def _asked(scope: Scope) -> tuple[str, str] | None:
    """Session (empty if none is named) and path of an agent's request; None for all others."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    if path.startswith("/sessions/"):
        session_id, is_agent, asked = path[10:].partition("/v1/")
        return (session_id, asked) if is_agent else None
    asked = path.removeprefix("/v1/")
    if asked not in PATHS:
        return None
    named = (value for name, value in scope["headers"] if name == _SESSION_HEADER)
    return next(named, b"").decode("latin-1"), asked


def _read_request(content: bytes) -> dict[str, Any]:
    try:
        body = from_json(content)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Refusal(400, "the body is not a JSON object")
    if body.get("n") is None:
        body.pop("n", None)
    elif body["n"] != 1:
        raise Refusal(400, "n: a session gives one answer to each request; open more sessions")
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) > 1 and not all(isinstance(each, int) for each in prompt):
        raise Refusal(400, "prompt: a session gives one answer to each request; send one prompt at a time")
    return body


def _refused(status: int, error: Exception) -> Response:
    return AsciiResponse({"error": {"message": str(error)}}, status_code=status)


def _note(session: Session, reader: TurnReader) -> None:
    turn = reader.turn
    if turn is not None and not session.is_closed:
        session.transcript.add(turn)
