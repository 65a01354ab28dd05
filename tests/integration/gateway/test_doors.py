"""Doors behind one name."""

import asyncio
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest
from asympo.gateway.doors import Doors

from tests.integration.gateway.fake_door import FakeDoor

BODY = b'{"messages": [{"role": "user", "content": "a"}]}'


def test_name_with_several_addresses_is_a_door_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    door = FakeDoor()
    port = urlsplit(door.address).port
    asked: list[str] = []

    async def look_up(host: str, port: int, **_: Any) -> list[Any]:
        """As a headless Service: of two pods one is gone."""
        asked.append(host)
        return [(socket.AF_INET, 0, 0, "", (address, port)) for address in ("127.0.0.1", "127.0.0.2")]

    async def work() -> None:
        doors = Doors([f"http://doors.test:{port}/v1"], token="", timeout_seconds=30.0)
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        for number in range(8):
            answer = await doors.ask(f"s{number}", "chat/completions", BODY, is_streamed=False)
            assert answer.status == 200
        assert {doors._order(f"s{number}")[0] for number in range(32)} == {
            f"http://{address}:{port}/v1" for address in ("127.0.0.1", "127.0.0.2")
        }
        assert all(doors._order("s") == doors._order("s") for _ in range(4))
        doors.close()

    asyncio.run(work())
    door.stop()
    assert asked == ["doors.test"]
    assert door.num_asked == 8
