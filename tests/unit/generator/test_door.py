"""Who is let in by a generator's door."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from asympo.common.errors import BadSetting
from asympo.engines.simulated import SimulatedEngine
from asympo.generator.door import BearerTokens, open_door
from asympo.generator.outside import OutsideRequests
from asympo.generator.reload.gate import VerdictGate
from asympo.generator.settings import DoorOptions, GeneratorSettings
from fastapi import FastAPI
from pydantic import ValidationError

TOKEN = "door-token-0123456789"


def ask(tokens: tuple[str, ...] | None, headers: dict[str, str]) -> int:
    app = FastAPI()
    app.add_api_route("/v1/models", lambda: {})
    app.add_middleware(BearerTokens, tokens=tokens)

    async def get() -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://door") as http:
            return (await http.get("/v1/models", headers=headers)).status_code

    return asyncio.run(get())


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer", 401),
    ],
)
def test_door_with_tokens_opens_for_one_of_them(authorization: str, status: int) -> None:
    assert ask(("another-token-0123456789", TOKEN), {"authorization": authorization}) == status


def test_door_without_tokens_is_open_on_this_machine() -> None:
    assert ask(None, {}) == 200
    with pytest.raises(ValidationError, match="beyond this machine callers need tokens"):
        DoorOptions(port=0, host="0.0.0.0")


def test_web_pages_ask_nothing_of_a_door_without_tokens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="asympo.generator.door")

    async def ask_as_a_page() -> list[int]:
        async with AsyncExitStack() as closing, httpx.AsyncClient() as http:
            await open_door(
                DoorOptions(port=0), _parts(_Doored()), outside=OutsideRequests(), closing=closing
            )
            address = f"http://127.0.0.1:{caplog.records[-1].__dict__['door_port']}/v1/models"
            return [
                (await http.get(address)).status_code,
                (await http.get(address, headers={"host": "evil.example"})).status_code,
                (await http.post(address, headers={"origin": "https://evil.example"})).status_code,
            ]

    assert asyncio.run(ask_as_a_page()) == [404, 421, 403]


def test_no_door_unless_asked_for() -> None:
    assert GeneratorSettings().door.port is None


@pytest.mark.parametrize("content", ["", "\n", "short\n", f"{TOKEN}\nshort"])
def test_tokens_that_could_be_guessed_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(BadSetting, match="16 characters"):
        asyncio.run(_open(DoorOptions(port=0, tokens=path), engine=_Doored()))


def test_engine_without_a_door_says_so() -> None:
    with pytest.raises(BadSetting, match="no door"):
        asyncio.run(_open(DoorOptions(port=0), engine=SimulatedEngine()))


class _Doored(SimulatedEngine):
    async def build_door(self, terms: Any) -> FastAPI:
        return FastAPI()


def _parts(engine: SimulatedEngine) -> Any:
    return SimpleNamespace(engine=engine, gate=VerdictGate(), reloader=None)


async def _open(options: DoorOptions, *, engine: SimulatedEngine) -> None:
    async with AsyncExitStack() as closing:
        await open_door(options, _parts(engine), outside=OutsideRequests(), closing=closing)
