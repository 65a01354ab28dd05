"""The door of an engine without the engine, as a program of its own: it guesses either side, then says so.

A byte a token.
"""

import json
import random
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class GameDoor(BaseHTTPRequestHandler):
    """Chat completions for the game of `game.py`."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """An answer with the token ids that the gateway asks for."""
        messages = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"]
        says: dict[str, Any] = {"role": "assistant", "content": "guessed"}
        if messages[-1]["role"] != "tool":
            guess = {"name": "guess", "arguments": json.dumps({"side": random.choice(("heads", "tails"))})}
            says |= {"content": "", "tool_calls": [{"id": "call", "type": "function", "function": guess}]}
        choice = {
            "index": 0,
            "finish_reason": "tool_calls" if "tool_calls" in says else "stop",
            "message": says,
            "token_ids": _tokens([says]),
        }
        named = {"id": "1", "object": "chat.completion", "created": 1, "model": "policy"}
        answer = json.dumps({**named, "prompt_token_ids": _tokens(messages), "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def _tokens(messages: list[dict[str, Any]]) -> list[int]:
    """A message is rendered alike when said and when shown again: each turn goes on with the one before."""
    return [token for message in messages for token in _rendered(message).encode()]


def _rendered(message: dict[str, Any]) -> str:
    calls = (call["function"]["arguments"] for call in message.get("tool_calls") or ())
    return f"{message['role']}: {message.get('content') or ''}{''.join(calls)}\n"


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8000), GameDoor).serve_forever()
