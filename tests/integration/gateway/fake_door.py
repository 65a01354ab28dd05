"""An engine's door without an engine: says of each answer which token ids it read and wrote."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

from asympo.common.http_server import QuietServer, bind
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

_NAMES = {"id": "x", "created": 1, "model": "policy"}


class FakeDoor:
    """Answers "n" for the n-th request, a byte a token; a conversation is rendered as `role:content;`."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.bodies: list[dict[str, Any]] = []
        self.has_token_ids = True
        self.status = 200
        self.calls: dict[str, Any] | None = None
        """Function to call, `name` and `arguments`, in answer to whatever a tool has not said."""
        self.breaks_off = False
        """As an engine that is killed in the middle of an answer."""
        self.raw: bytes | None = None
        """Said in place of any answer."""
        self.hangs = False
        """Answers only whom it has heard leave."""
        self.has_begun, self.was_left = threading.Event(), threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()
        app = FastAPI()
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        app.add_api_route("/v1/responses", self.respond, methods=["POST"])
        listener = bind("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        self._server = QuietServer(app)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._server.serve(sockets=[listener])), daemon=True
        )
        self._thread.start()

    async def chat(self, request: Request) -> Response:
        if self.status != 200:
            return JSONResponse({"error": {}}, status_code=self.status)
        if self.breaks_off:
            return StreamingResponse(_begin(), headers={"content-length": "1000"})
        if self.raw is not None:
            return Response(self.raw)
        body = await request.json()
        self.bodies.append(body)
        self.num_asked += 1
        if self.hangs:
            self.has_begun.set()
            await request.receive()
            self.was_left.set()
        if not self.may_answer.is_set():
            self.has_begun.set()
            await asyncio.to_thread(self.may_answer.wait)
        answer = str(self.num_asked)
        shown = "".join(map(_rendered, body["messages"])) + "assistant:"
        says: dict[str, Any] = {"role": "assistant", "content": answer}
        if self.calls is not None and body["messages"][-1]["role"] != "tool":
            says |= {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": self.calls}]}
        written = list(_rendered(says).removeprefix("assistant:").encode())
        ids = {"prompt_token_ids": list(shown.encode())} if self.has_token_ids else {}
        if body.get("stream"):
            return StreamingResponse(_stream(says, ids, written), media_type="text/event-stream")
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "tool_calls" if "tool_calls" in says else "stop",
            "message": says,
        }
        if self.has_token_ids:
            choice["token_ids"] = written
        return JSONResponse({**_NAMES, "object": "chat.completion", "choices": [choice], **ids})

    async def respond(self, request: Request) -> Response:
        """As vLLM, in the part that is read: every fourth answer is cut off."""
        body = await request.json()
        self.num_asked += 1
        answer = str(self.num_asked)
        shown = "".join(f"{each['role']}:{_text(each['content'])};" for each in body["input"]) + "assistant:"
        content = [{"type": "output_text", "text": answer, "annotations": []}]
        whole: dict[str, Any] = {
            **{"id": "x", "object": "response", "created_at": 1, "model": "policy"},
            "status": "completed" if self.num_asked % 4 else "incomplete",
            "output": [{"id": "y", "type": "message", "role": "assistant", "content": content}],
        }
        if body["enable_response_messages"]:
            whole["input_messages"] = [{"message": shown, "tokens": list(shown.encode())}]
            whole["output_messages"] = [{"message": answer, "tokens": list(f"{answer};".encode())}]
        if body.get("stream"):
            return StreamingResponse(_events(answer, whole), media_type="text/event-stream")
        return JSONResponse(whole)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


async def _begin() -> AsyncIterator[bytes]:
    yield b"{"


def _text(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


async def _events(answer: str, whole: dict[str, Any]) -> AsyncIterator[bytes]:
    begun = {**whole, "status": "in_progress", "output": []}
    for event in (
        {"type": "response.created", "response": begun},
        {"type": "response.output_text.delta", "delta": answer},
        {"type": "response.completed", "response": whole},
    ):
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def _rendered(message: dict[str, Any]) -> str:
    calls = "".join(json.dumps(call["function"], sort_keys=True) for call in message.get("tool_calls") or ())
    return f"{message['role']}:{_text(message.get('content') or '')}{calls};"


async def _stream(says: dict[str, Any], ids: dict[str, Any], written: list[int]) -> AsyncIterator[bytes]:
    reason = "tool_calls" if "tool_calls" in says else "stop"
    first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], **ids}
    text = {"choices": [{"index": 0, "delta": says, "token_ids": written}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason, "token_ids": []}]}
    for event in (first, text, last):
        yield f"data: {json.dumps({**_NAMES, 'object': 'chat.completion.chunk', **event})}\n\n".encode()
    yield b"data: [DONE]\n\n"
