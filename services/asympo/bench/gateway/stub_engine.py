"""An engine's door that answers at once, and a proxy that only passes on."""

import asyncio
import random
import sys

import aiohttp
import uvloop
from aiohttp import web
from aiohttp.typedefs import Handler

MAX_BYTES = 64 * 2**20


def engine(*, mean_delay_seconds: float) -> web.Application:
    """Answers a conversation with its length; a byte a token, each message ending with a newline."""

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if mean_delay_seconds:
            await asyncio.sleep(random.expovariate(1 / mean_delay_seconds))
        shown = "".join(f"{message['content']}\n" for message in body["messages"])
        answer = f"answer {len(body['messages'])}"
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": answer},
            "token_ids": list(f"{answer}\n".encode()),
        }
        named = {"id": "1", "object": "chat.completion", "created": 1, "model": "policy"}
        return web.json_response({**named, "prompt_token_ids": list(shown.encode()), "choices": [choice]})

    return _app(chat)


def proxy(target: str) -> web.Application:
    """The least that something between an agent and an engine can do."""
    session: list[aiohttp.ClientSession] = []

    async def chat(request: web.Request) -> web.StreamResponse:
        if not session:
            session.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        async with session[0].post(
            f"{target}/chat/completions", data=await request.read(), headers=_JSON
        ) as answer:
            return web.Response(body=await answer.read(), status=answer.status, headers=_JSON)

    return _app(chat)


_JSON = {"content-type": "application/json"}


def _app(chat: Handler) -> web.Application:
    app = web.Application(client_max_size=MAX_BYTES)
    app.router.add_post("/v1/chat/completions", chat)
    return app


if __name__ == "__main__":
    _kind, _port, _more = sys.argv[1:4]
    _built = proxy(_more) if _kind == "proxy" else engine(mean_delay_seconds=float(_more))
    # The loop of the gateway, so that it is no better off than a proxy.
    web.run_app(
        _built,
        host="127.0.0.1",
        port=int(_port),
        print=None,
        access_log=None,
        loop=uvloop.new_event_loop(),
    )
