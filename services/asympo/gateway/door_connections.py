"""Connections to the doors: a request and an answer at a time, kept for the next one.

The least that this needs of HTTP/1.1, on the parser that the server has: it costs a quarter of what a general
client does, and that is half of what a gateway does for a request.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httptools

CONNECT_SECONDS = 5.0
KEEP_SECONDS = 4.0
"""How long an idle connection is used again: less than the five seconds after which uvicorn closes it."""
MAX_UNREAD_BYTES = 2**20
"""Of a stream: beyond, the door waits until the agent has read."""


class Unanswered(ConnectionError):
    """The connection ended before there was any answer."""


class AnswerTooSlow(TimeoutError):
    """The door took the request and did not answer it in its time."""


class DoorAnswer:
    """What a door says, as it comes. Raises OSError where it breaks off or takes too long."""

    def __init__(self, connection: "_Connection", *, seconds: float) -> None:
        self.status = 0
        """As HTTP says it, once there is one."""
        self._connection = connection
        self._pieces: list[bytes] = []
        self._num_unread = 0
        self._is_whole = False
        self._error: OSError | None = None
        self._waiting: asyncio.Future[None] | None = None
        loop = asyncio.get_running_loop()
        late = AnswerTooSlow(f"not all of the answer came within {seconds:.3g} s")
        self._timer = loop.call_later(seconds, self.fail, late)

    async def begun(self) -> Self:
        """Itself, with the status."""
        while not self.status:
            await self._more()
        return self

    async def whole(self) -> bytes:
        """All of the body, however often it is asked for; not after `pieces`."""
        try:
            while not self._is_whole:
                self._connection.resume()
                await self._more()
        except BaseException:  # who is cancelled leaves no answer behind that a later request would read
            self.close()
            raise
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        while True:
            if self._pieces:
                piece = b"".join(self._pieces)
                self._pieces.clear()
                self._num_unread = 0
                self._connection.resume()
                yield piece
            elif self._is_whole:
                return
            else:
                await self._more()

    def close(self) -> None:
        """Ends the connection, unless all of the answer is there."""
        self.fail(ConnectionError("nobody waits for the answer any more"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, piece: bytes) -> None:
        """More of the body."""
        self._pieces.append(piece)
        self._num_unread += len(piece)
        if self._num_unread > MAX_UNREAD_BYTES:
            self._connection.pause()
        self._wake()

    def begin(self, status: int) -> None:
        """The status has come."""
        self.status = status
        self._wake()

    def finish(self) -> None:
        """The end has come."""
        self._is_whole = True
        self._timer.cancel()
        self._wake()

    def fail(self, error: OSError) -> None:
        """There will be no more."""
        if not self._is_whole and self._error is None:
            self._error = error
            self._timer.cancel()
            self._connection.end()
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _more(self) -> None:
        if self._error is None:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        if self._error is not None:
            raise self._error


class _Connection(asyncio.Protocol):
    """One connection, used by one request at a time."""

    def __init__(self, idle: "list[_Connection]") -> None:
        self._idle = idle
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: DoorAnswer | None = None
        self._idle_since = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether the door still listens here, as far as anybody knows."""
        return self._transport is not None and time.monotonic() < self._idle_since + KEEP_SECONDS

    def ask(self, head: bytes, payload: bytes, *, seconds: float) -> DoorAnswer:
        """Sends a request, whose answer comes in time."""
        assert self._transport is not None
        self._answer = DoorAnswer(self, seconds=seconds)
        self._transport.writelines((head, b"Content-Length: %d\r\n\r\n" % len(payload), payload))
        return self._answer

    def rest(self) -> None:
        """Waits for the next request."""
        self._idle_since = time.monotonic()
        self._idle.append(self)

    def end(self) -> None:
        """Closes it, now."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def pause(self) -> None:
        """Reads no more for a while."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reads on."""
        if self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a stream
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._lost(ConnectionError(f"the answer is no HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        is_begun = self._answer is not None and self._answer.status
        kind = ConnectionError if is_begun else Unanswered
        self._lost(kind(f"the connection has ended{f': {exc}' if exc else ''}"))

    def on_headers_complete(self) -> None:
        if self._answer is not None:
            self._answer.begin(self._parser.get_status_code())

    def on_body(self, body: bytes) -> None:
        if self._answer is not None:
            self._answer.add(body)

    def on_message_complete(self) -> None:
        answer, self._answer = self._answer, None
        is_kept = answer is not None and self._parser.should_keep_alive()
        if not is_kept or self._transport is None or self._transport.get_write_buffer_size():
            self.end()
        else:
            self.resume()
            self.rest()
        if answer is not None:
            answer.finish()

    def _lost(self, error: OSError) -> None:
        self.end()
        if self in self._idle:
            self._idle.remove(self)
        if self._answer is not None:
            self._answer.fail(error)


class DoorConnections:
    """Open connections by address, as many as there are requests. Belongs to one event loop."""

    def __init__(self, *, token: str) -> None:
        said = {"Accept": "*/*", "Content-Type": "application/json"}
        if token:
            said["Authorization"] = f"Bearer {token}"
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        self._heads: dict[str, bytes] = {}
        self._idle: dict[str, list[_Connection]] = {}
        self._ssl: ssl.SSLContext | None = None

    async def post(self, address: str, path: str, payload: bytes, *, seconds: float) -> DoorAnswer:
        """The answer once it has begun. Raises OSError."""
        url = f"{address}/{path}"
        head = self._heads.get(url) or self._head(url)
        idle = self._idle.setdefault(address, [])
        while idle:
            connection = idle.pop()
            if not connection.is_usable:
                connection.end()
                continue
            try:
                return await _begun(connection.ask(head, payload, seconds=seconds))
            except Unanswered:
                # The door closed it while the request was on its way.
                break
        connection = await self._connect(address, idle)
        return await _begun(connection.ask(head, payload, seconds=seconds))

    async def reaches(self, address: str) -> bool:
        """Whether somebody takes connections there."""
        idle = self._idle.setdefault(address, [])
        if any(connection.is_usable for connection in idle):
            return True
        try:
            connection = await self._connect(address, idle)
        except OSError:
            return False
        connection.rest()
        return True

    def close(self) -> None:
        """Ends those that nobody uses."""
        for idle in self._idle.values():
            while idle:
                idle.pop().end()

    def _head(self, url: str) -> bytes:
        parts = urlsplit(url)
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{self._headers}".encode()
        self._heads[url] = head
        return head

    async def _connect(self, address: str, idle: list[_Connection]) -> _Connection:
        parts = urlsplit(address)
        is_secure = parts.scheme == "https"
        if is_secure and self._ssl is None:
            self._ssl = ssl.create_default_context()
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(idle),
                parts.hostname or "",
                parts.port or (443 if is_secure else 80),
                ssl=self._ssl if is_secure else None,
            )
        return connection


async def _begun(answer: DoorAnswer) -> DoorAnswer:
    try:
        return await answer.begun()
    except BaseException:  # cancelled as well: the connection is not for the next request then
        answer.close()
        raise
