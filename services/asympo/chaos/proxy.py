"""A door between one client and the broker that can be slow, deaf or slammed, and that can stop time.

One listener per client. It knows the messages that pass, so that a fault can be put exactly between two of
them: after a request has reached the broker and before its reply is relayed, or before a request is sent on.
"""

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from asympo.chaos.resp import FrameReader, Request, parse_reply, parse_request

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that turns a close into a reset."""


class Moment(StrEnum):
    """Where in the life of a request a trap springs."""

    BEFORE = "before"
    """The client has sent it, the broker has not seen it."""
    AFTER = "after"
    """The broker has done it, the client has not heard."""


class Handling(StrEnum):
    """What becomes of a message that was held."""

    RELAY = "relay"
    DISCARD = "discard"
    """It vanishes without a word; the client waits until its own time-out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catch:
    """A message that a trap holds."""

    request: Request
    reply: Any
    """Parsed; None before the broker was asked."""
    connection: "Connection"


@dataclass(eq=False, kw_only=True, slots=True)
class Trap:
    """Waits for one message; its owner decides what becomes of it."""

    script: str | None
    """None matches every script."""
    moment: Moment
    is_wanted: Callable[[Request, Any], bool]
    _caught: asyncio.Future[Catch] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    _handling: asyncio.Future[Handling] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    async def caught(self, timeout_seconds: float) -> Catch:
        """The message, once it is there. Raises TimeoutError, and then the trap is spent."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(self._caught)
        except (TimeoutError, asyncio.CancelledError):
            # A trap that nobody waits for would hold its message for good.
            self.release(Handling.RELAY)
            raise

    def release(self, handling: Handling) -> None:
        """Lets the message go its way; only the first call counts."""
        if not self._handling.done():
            self._handling.set_result(handling)

    @property
    def is_spent(self) -> bool:
        """It holds or has held a message, or was given up."""
        return self._caught.done() or self._handling.done()

    async def hold(self, catch: Catch) -> Handling:
        """Called by the connection: waits until it is said how to handle it."""
        self._caught.set_result(catch)
        return await self._handling


class Connection:
    """One connection of the client and the one to the broker that stands behind it."""

    def __init__(
        self,
        *,
        link: "ClientLink",
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        broker: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._link = link
        self._from_client, self._to_client = FrameReader(client[0]), client[1]
        self._from_broker, self._to_broker = FrameReader(broker[0]), broker[1]
        self._asked: deque[Request] = deque()

    async def run(self) -> None:
        """Relays until either side ends."""
        pumps = [asyncio.ensure_future(self._relay_requests()), asyncio.ensure_future(self._relay_replies())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            self._link.num_hung_up += pumps[0].done()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._to_broker.transport.abort()
            self._to_client.transport.abort()

    def reset(self) -> None:
        """Ends both sides with a reset, as a broken network does."""
        for writer in (self._to_client, self._to_broker):
            raw: socket.socket | None = writer.get_extra_info("socket")
            if raw is not None:
                with contextlib.suppress(OSError):
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def ask_again(self, request: Request) -> Any:
        """Sends a request once more and keeps its reply; only while a trap holds the first one's reply."""
        self._to_broker.write(request.raw)
        frame = await self._from_broker.next()
        if frame is None:
            raise ConnectionResetError("the broker closed the connection")
        return parse_reply(frame)

    async def _relay_requests(self) -> None:
        with contextlib.suppress(OSError):
            while (frame := await self._from_client.next()) is not None:
                request = parse_request(frame)
                self._link.num_requests += 1
                await self._link.admit(request)
                if await self._is_lost(request, None, Moment.BEFORE):
                    continue
                self._asked.append(request)
                self._to_broker.write(frame)
                await self._to_broker.drain()

    async def _relay_replies(self) -> None:
        with contextlib.suppress(OSError):
            while (frame := await self._from_broker.next()) is not None:
                request = self._asked.popleft()
                reply = parse_reply(frame)
                self._link.saw(request, reply)
                if await self._is_lost(request, reply, Moment.AFTER):
                    continue
                self._to_client.write(frame)
                await self._to_client.drain()

    async def _is_lost(self, request: Request, reply: Any, moment: Moment) -> bool:
        link = self._link
        if link.is_deaf:
            link.num_swallowed += 1
            return True
        if link.delay_seconds and moment is Moment.BEFORE:
            begun = time.monotonic()
            await asyncio.sleep(link.delay_seconds)
            link.longest_delay_seconds = max(link.longest_delay_seconds, time.monotonic() - begun)
        trap = link.trap_for(request, reply, moment)
        if trap is None:
            return False
        handling = await trap.hold(Catch(request=request, reply=reply, connection=self))
        return handling is Handling.DISCARD


class RequestPace(Protocol):
    """May hold requests back."""

    async def admit(self, request: Request) -> None:
        """Returns when the request may go on."""

    def granted(self) -> None:
        """One more lease was handed out."""


class ClientLink:
    """The way of one client to the broker."""

    def __init__(
        self,
        *,
        name: str,
        broker_port: int,
        pace: RequestPace | None = None,
    ) -> None:
        self.name = name
        self._broker_port = broker_port
        self._pace = pace
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._traps: list[Trap] = []
        self.port = 0
        self.delay_seconds = 0.0
        self.is_deaf = False
        """Everything is swallowed: the connections look alive and are not."""
        self.is_shut = False
        """Whoever comes is turned away, as by a broker that is down."""
        self.longest_delay_seconds = 0.0
        self.num_swallowed = 0
        self.num_requests = 0
        self.granted_at = 0.0
        """When the broker last granted a lease through here; monotonic."""
        self.num_hung_up = 0
        """Connections that the client closed."""
        self.num_opened = 0
        """Connections so far."""

    async def open(self) -> None:
        """Listens on a loopback port of its own."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stops listening and ends every connection."""
        if self._server is not None:
            self._server.close()
        self.reset()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def trap(
        self,
        *,
        script: str | None = None,
        moment: Moment,
        is_wanted: Callable[[Request, Any], bool] = lambda request, reply: True,
    ) -> Trap:
        """Sets a trap for the next message that fits."""
        trap = Trap(script=script, moment=moment, is_wanted=is_wanted)
        self._traps.append(trap)
        return trap

    def trap_for(self, request: Request, reply: Any, moment: Moment) -> Trap | None:
        """The trap that this message springs, taken away."""
        self._traps = [trap for trap in self._traps if not trap.is_spent]
        for trap in self._traps:
            fits = trap.moment is moment and trap.script in (None, request.script)
            if fits and trap.is_wanted(request, reply):
                self._traps.remove(trap)
                return trap
        return None

    def reset(self) -> int:
        """Resets every connection; says how many there were."""
        for connection in tuple(self._connections):
            connection.reset()
        return len(self._connections)

    async def admit(self, request: Request) -> None:
        """Holds a request for as long as the pace of the run asks."""
        if self._pace is not None:
            await self._pace.admit(request)

    def saw(self, request: Request, reply: Any) -> None:
        """Every reply passes here before any trap."""
        if request.script == "acquire" and isinstance(reply, list) and reply[0] == b"GRANTED":
            self.granted_at = time.monotonic()
            if self._pace is not None:
                self._pace.granted()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_opened += 1
        try:
            if self.is_shut:
                raise ConnectionRefusedError("the door is shut")
            broker = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            writer.transport.abort()
            return
        connection = Connection(link=self, client=(reader, writer), broker=broker)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
