"""Doors behind one name."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from asympo.common.rollout_log import RunLog
from asympo.gateway.doors import Doors

from tests.integration.gateway.conftest import RunningGateway
from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_ingest import post
from tests.integration.rollout_log.conftest import start_run

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
            answer = await doors.ask(
                f"s{number}", "chat/completions", BODY, is_streamed=False, max_seconds=30.0
            )
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


@pytest.mark.parametrize("limit", ["request_seconds", "session_seconds"])
def test_answer_that_takes_too_long_is_not_begun_again_elsewhere(
    limit: str, log: RunLog, start_gateway: Callable[..., RunningGateway]
) -> None:
    start_run(log)
    doors = [FakeDoor(), FakeDoor()]
    for door in doors:
        door.hangs = True
    gateway = start_gateway(doors=[door.address for door in doors], **{limit: 0.5})
    started = post(gateway, {"own_prompt": True, "num_sessions": 2}, path="/rl/start_session").json()
    answer = httpx.post(f"{started['sessions'][0]['base_url']}/chat/completions", content=BODY, timeout=30)
    assert (answer.status_code, limit in answer.text) == (504, True)
    assert sum(door.num_asked for door in doors) == 1
    for door in doors:
        door.stop()


def test_stream_that_breaks_off_ends_in_an_error(
    log: RunLog, start_gateway: Callable[..., RunningGateway], caplog: pytest.LogCaptureFixture
) -> None:
    start_run(log)
    door = FakeDoor()
    door.breaks_off = True
    gateway = start_gateway(doors=[door.address])
    started = post(gateway, {"own_prompt": True, "num_sessions": 2}, path="/rl/start_session").json()
    body = BODY.replace(b"}]}", b'}], "stream": true}')
    answer = httpx.post(f"{started['sessions'][0]['base_url']}/chat/completions", content=body, timeout=30)
    begun, event = answer.text.strip().split("\n\n")
    assert (answer.status_code, begun, event[:51]) == (
        200,
        "{",
        'data: {"error":{"message":"the answer was cut off: ',
    )
    assert "A session's stream ends early: the answer was cut off" in caplog.text
    door.stop()


def test_answer_that_makes_no_sense_is_an_error_and_no_turn(
    log: RunLog, start_gateway: Callable[..., RunningGateway], caplog: pytest.LogCaptureFixture
) -> None:
    start_run(log)
    door = FakeDoor()
    gateway = start_gateway(doors=[door.address])
    started = post(gateway, {"own_prompt": True, "num_sessions": 2}, path="/rl/start_session").json()
    session = started["sessions"][0]
    asked = f"{session['base_url']}/chat/completions"
    right = b'data: {"choices": [{"token_ids": [1], "finish_reason": "stop"}]}'
    door.raw = right + b"\n\ndata: {\n\ndata: [DONE]\n\n"
    streamed = httpx.post(asked, content=BODY.replace(b"}]}", b'}], "stream": true}'), timeout=30)
    assert streamed.text.strip().startswith(
        'data: {"error":{"message":"the generator\'s answer makes no sense: '
    )
    assert "A session's stream ends early: the generator's answer makes no sense" in caplog.text
    door.raw = b"{"
    whole = httpx.post(asked, content=BODY, timeout=30)
    assert (whole.status_code, "the generator's answer makes no sense" in whole.text) == (502, True)
    assert httpx.get(f"{gateway.http}/sessions/{session['session_id']}").json()["turns"] == 0
    door.stop()
