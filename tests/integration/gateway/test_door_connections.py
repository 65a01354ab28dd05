"""Answers of doors as they come over a wire: in pieces, cut off, late, or on a connection that has ended."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from asympo.gateway import door_connections
from asympo.gateway.door_connections import DoorConnections, Unanswered

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def work(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main)

    return work


class Door:
    """A server that says what a test has it say; `requests` are those of every connection."""

    def __init__(self, *answers: bytes, closes: bool = False) -> None:
        self.answers = list(answers)
        self.closes = closes
        self.requests: list[list[bytes]] = []
        self.written = asyncio.Event()

    async def __aenter__(self) -> "Door":
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: list[bytes] = []
        self.requests.append(mine)
        while self.answers:
            head = await reader.readuntil(b"\r\n\r\n")
            mine.append(head + await reader.readexactly(2))
            writer.write(self.answers.pop(0))
            await writer.drain()
            self.written.set()
            if self.closes:
                break
        writer.close()


async def post(connections: DoorConnections, door: Door, *, seconds: float = 60.0) -> bytes:
    answer = await connections.post(door.address, "chat/completions", b"{}", seconds=seconds)
    assert answer.status == 200
    return await answer.whole()


def test_connection_is_used_again_and_shows_the_token(run: Callable[..., None]) -> None:
    async def work() -> None:
        connections = DoorConnections(token="secret")
        async with Door(WHOLE, CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n") as door:
            assert [await post(connections, door) for _ in range(2)] == [b"hello", b"hello"]
            (requests,) = door.requests
        assert requests[0] == requests[1]
        assert requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"\r\nAuthorization: Bearer secret\r\n" in requests[0]
        assert requests[0].endswith(b"\r\nContent-Length: 2\r\n\r\n{}")
        connections.close()

    run(work())


def test_connection_that_the_door_has_closed_is_replaced(run: Callable[..., None]) -> None:
    async def work() -> None:
        connections = DoorConnections(token="")
        async with Door(WHOLE, WHOLE, closes=True) as door:
            assert [await post(connections, door) for _ in range(2)] == [b"hello", b"hello"]
            assert [len(each) for each in door.requests] == [1, 1]
        connections.close()

    run(work())


def test_connection_that_the_door_says_it_will_close_is_not_used_again(run: Callable[..., None]) -> None:
    async def work() -> None:
        connections = DoorConnections(token="")
        async with Door(WHOLE.replace(b"\r\n", b"\r\nConnection: close\r\n", 1), WHOLE) as door:
            assert [await post(connections, door) for _ in range(2)] == [b"hello", b"hello"]
            assert [len(each) for each in door.requests] == [1, 1]
        connections.close()

    run(work())


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", Unanswered),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", ConnectionError),
        (CHUNKED + b"5\r\nhello\r\n", ConnectionError),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ConnectionError),
    ],
    ids=["nothing", "cut off", "cut off in pieces", "no HTTP"],
)
def test_answer_that_is_none_is_an_error(said: bytes, error: type, run: Callable[..., None]) -> None:
    async def work() -> None:
        connections = DoorConnections(token="")
        async with Door(said, closes=True) as door:
            with pytest.raises(ConnectionError) as raised:
                await post(connections, door)
        assert type(raised.value) is error

    run(work())


def test_answer_that_takes_too_long_ends_its_connection(run: Callable[..., None]) -> None:
    async def work() -> None:
        connections = DoorConnections(token="")
        async with Door(CHUNKED + b"5\r\nhello\r\n", WHOLE) as door:
            with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
                await post(connections, door, seconds=0.1)
            assert await post(connections, door) == b"hello"
            assert len(door.requests) == 2
        connections.close()

    run(work())


def test_door_waits_while_an_agent_does_not_read(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door_connections, "MAX_UNREAD_BYTES", 1024)
    size = 64 * 2**20

    async def work() -> None:
        connections = DoorConnections(token="")
        said = CHUNKED + b"%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n"
        async with Door(said) as door:
            answer = await connections.post(door.address, "completions", b"{}", seconds=60.0)
            pieces = answer.pieces()
            first = await anext(pieces)
            transport = answer._connection._transport
            assert transport is not None
            async with asyncio.timeout(30):
                while transport.is_reading():
                    await asyncio.sleep(0)
            assert not door.written.is_set(), "far more than sockets hold"
            rest = [piece async for piece in pieces]
            assert len(first) + sum(map(len, rest)) == size
            assert door.written.is_set()
        connections.close()

    run(work())


def test_stream_that_nobody_reads_on_ends_at_the_door(run: Callable[..., None]) -> None:
    async def work() -> None:
        connections = DoorConnections(token="")
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"{}")
            writer.write(CHUNKED + b"5\r\nhello\r\n")
            assert await reader.read() == b""
            ended.set()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            async with await connections.post(address, "completions", b"{}", seconds=60.0) as answer:
                assert await anext(answer.pieces()) == b"hello"
            async with asyncio.timeout(30):
                await ended.wait()

    run(work())
