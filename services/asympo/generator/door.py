"""The OpenAI-compatible door of a generator: its engine, asked by programs that know nothing of the log."""

import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting
from asympo.common.http_server import HostCheck, bind, serving
from asympo.engines.base import DoorTerms
from asympo.generator.core import ServingParts
from asympo.generator.outside import OutsideRequests
from asympo.generator.settings import DoorOptions

log = logging.getLogger(__name__)


async def open_door(
    options: DoorOptions, parts: ServingParts, *, outside: OutsideRequests, closing: AsyncExitStack
) -> None:
    """Serves until `closing` closes, if a door is asked for."""
    if options.port is None:
        return

    gate, reloader = parts.gate, parts.reloader
    terms = DoorTerms(
        model_name=options.model_name,
        tool_call_parser=options.tool_call_parser,
        opened=gate.opened,
        passes=gate.passes,
        cache_salt=lambda: reloader.cache_salt,
        policy_step=lambda: reloader.policy.step if reloader.policy else None,
    )
    app = await parts.engine.build_door(terms)
    app.add_middleware(CountedRequests, outside=outside)
    app.add_middleware(BearerTokens, tokens=_read_tokens(options.tokens))
    if options.tokens is None:
        # Nobody shows a token here, and a page that the browser on this machine opens has none.
        app.add_middleware(HostCheck, allowed_hosts=frozenset())
    listener = bind(options.host, options.port)
    port = int(listener.getsockname()[1])
    await closing.enter_async_context(serving(app, listener))
    log.info("OpenAI-compatible door on http://%s:%d/v1", options.host, port, extra={"door_port": port})


class CountedRequests:
    """ASGI middleware: what a drain waits for; once it has begun, callers are sent to another door."""

    def __init__(self, app: Callable[..., Awaitable[None]], *, outside: OutsideRequests) -> None:
        self._app = app
        self._outside = outside

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and self._outside.is_closed:
            await _refuse(send, 503, "the generator is draining: ask another one")
            return
        with self._outside.one():
            await self._app(scope, receive, send)


class BearerTokens:
    """ASGI middleware: a caller without one of the tokens is refused before anything is read."""

    def __init__(self, app: Callable[..., Awaitable[None]], *, tokens: tuple[str, ...] | None) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or self._tokens is None or self._is_known(dict(scope["headers"])):
            await self._app(scope, receive, send)
            return
        words = "present a valid token: Authorization: Bearer TOKEN"
        await _refuse(send, 401, words, (b"www-authenticate", b"Bearer"))

    def _is_known(self, headers: dict[bytes, bytes]) -> bool:
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        known = [hmac.compare_digest(given.strip(), token.encode()) for token in self._tokens or ()]
        return kind.lower() == b"bearer" and any(known)


async def _refuse(send: Any, status: int, words: str, *headers: tuple[bytes, bytes]) -> None:
    body = json.dumps({"error": {"message": words, "code": status}}).encode()
    headers = ((b"content-type", b"application/json"), *headers)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _read_tokens(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        tokens = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"the tokens of the door cannot be read from {path}: {error}") from None
    if not tokens or min(map(len, tokens)) < 16:
        raise BadSetting(
            f"{path} holds no token, or one shorter than 16 characters: give at least one, each of 16 "
            "characters or more"
        )
    return tokens
