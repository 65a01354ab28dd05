"""The server of every service closes what asks for nothing, and what is too many."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from asympo.common import http_server
from asympo.common.http_server import HostCheck, QuietServer, bind
from asympo.gateway.connections import GatewayConnection
from fastapi import FastAPI, Request, Response


@pytest.fixture(params=[{}, {"connection": GatewayConnection}], ids=["every service", "gateway"])
def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(http_server, "MAX_TURNED_AWAY", 2)
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 2.0)
    app = FastAPI()
    app.add_api_route("/livez", lambda: "ok")
    app.add_api_route("/v1/status", lambda: "ok")
    app.add_route("/read", read, methods=["POST"])
    app.add_middleware(HostCheck, allowed_hosts=frozenset())
    listener = bind("127.0.0.1", 0)
    server = QuietServer(app, **request.param)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join()
    listener.close()


async def read(request: Request) -> Response:
    return Response(await request.body())


def ask(
    address: tuple[str, int], path: str, *, host: str = "127.0.0.1", method: str = "GET", more: str = ""
) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n"
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head.encode())
        return connection.recv(200)


@pytest.mark.parametrize("said", [b"", b"GET /livez HTTP/1.1\r\nHost: 127"])
def test_connection_that_asks_for_nothing_is_closed_and_others_are_answered(
    address: tuple[str, int], said: bytes
) -> None:
    with socket.create_connection(address, timeout=20) as silent:
        silent.sendall(said)
        assert ask(address, "/livez").startswith(b"HTTP/1.1 200")
        assert silent.recv(1) == b""


def test_connections_that_ask_for_nothing_make_room_for_one_that_asks(address: tuple[str, int]) -> None:
    held = [socket.create_connection(address, timeout=20) for _ in range(40)]
    assert ask(address, "/v1/status").startswith(b"HTTP/1.1 200"), "long before they are closed as silent"
    assert held[0].recv(1) == b"", "the oldest"
    for each in held:
        each.close()


def test_connection_beyond_those_that_are_busy_is_told_to_come_again(
    address: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nConnection: close\r\n\r\n"
    with contextlib.ExitStack() as closing:
        busy = [closing.enter_context(socket.create_connection(address, timeout=20)) for _ in range(4)]
        for each in busy:
            each.sendall(head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
            assert each.recv(100).startswith(b"HTTP/1.1 100"), "it is being read"
        answer = ask(address, "/v1/status")
        assert (answer[:12], b"retry-after: 1" in answer) == (b"HTTP/1.1 503", True)
        assert "All of 4 connections are busy" in caplog.text
        turned_away = [closing.enter_context(socket.create_connection(address, timeout=20)) for _ in range(3)]
        assert turned_away[0].recv(1) == b"", "there are only so many of those, too"
        for each in turned_away[1:]:
            each.sendall(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert each.recv(100).startswith(b"HTTP/1.1 503"), "in whatever order they come and ask"
        for each in busy:
            each.sendall(b"x")
            assert each.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "said",
    [
        b"GET /" + b"x" * 200_000,
        b"GET /livez HTTP/1.1\r\nHost: " + b"x" * 200_000,
        b"POST /read HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 200_000,
    ],
    ids=["address", "header", "extension of a chunk"],
)
def test_head_without_an_end_is_refused(
    address: tuple[str, int], said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 600.0)
    with socket.create_connection(address, timeout=20) as connection:
        # What is cut off may reset the connection while it is still being sent.
        with contextlib.suppress(ConnectionError):
            connection.sendall(said)
        with contextlib.suppress(ConnectionError):
            while connection.recv(1000):
                pass


def test_stranger_s_name_is_refused_and_a_probe_is_not(address: tuple[str, int]) -> None:
    assert ask(address, "/v1/status", host="evil.example").startswith(b"HTTP/1.1 421")
    assert ask(address, "/livez", host="10.0.0.7:8080").startswith(b"HTTP/1.1 200")
    assert ask(address, "/v1/status", host="localhost:8080").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ("", b"200"),
        ("Origin: http://localhost:3000\r\nSec-Fetch-Site: cross-site\r\n", b"200"),
        ("Origin: http://evil.example\r\n", b"403"),
        ("Origin: null\r\n", b"403"),
        ("Sec-Fetch-Site: cross-site\r\n", b"403"),
    ],
)
def test_page_of_another_site_changes_nothing(address: tuple[str, int], more: str, status: bytes) -> None:
    assert ask(address, "/read", method="POST", more=more).startswith(b"HTTP/1.1 " + status)
    assert ask(address, "/v1/status", more=more).startswith(b"HTTP/1.1 200"), "a link may lead here"


def test_answer_never_waits_for_an_acknowledgement() -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
