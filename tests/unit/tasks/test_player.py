"""An environment whose code never returns costs its own episodes, not the run."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from asympo.tasks.environments.player import playing
from asympo.tasks.environments.player.factory_stage import FactoryStage
from asympo.tasks.environments.player.own_thread import in_own_thread
from asympo.tasks.environments.player.playing import DoorPlayer, Player
from asympo.tasks.environments.player.stage import Seat


class Game:
    """Hangs in what `hangs_in` names, once it is played."""

    hangs_in = ""
    is_played = False
    free = threading.Event()

    def __init__(self) -> None:
        if self.is_played:
            self.wait_in("factory")

    @classmethod
    def wait_in(cls, place: str) -> None:
        if place == cls.hangs_in:
            cls.free.wait()

    def reset(self, **row: Any) -> None:
        self.wait_in("reset")

    def get_reward(self) -> float:
        return 1.0


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FactoryStage]:
    pytest.importorskip("transformers")
    module: Any = ModuleType("hanging_game")
    module.Game = Game
    monkeypatch.setitem(sys.modules, "hanging_game", module)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Guess."}\n')
    staged = FactoryStage("hanging_game:Game", {}, tmp_path / "rows.jsonl")
    monkeypatch.setattr(Game, "is_played", True)
    monkeypatch.setattr(Game, "free", threading.Event())
    yield staged
    Game.free.set()


@pytest.mark.parametrize("place", ["factory", "reset"])
def test_episode_that_hangs_is_told_as_failed_and_the_player_ends(
    stage: FactoryStage, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Game, "hangs_in", place)
    monkeypatch.setattr(playing, "EPISODE_SECONDS", 0.01)
    with (tmp_path / "answers").open("w") as answers:
        player = DoorPlayer(stage, door="http://door/v1", sampling={}, answers=answers)
        asyncio.run(player.run([0, 0], 2))
    told = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
    assert [each["failure"] for each in told] == ["TimeoutError()"] * 2


def test_session_whose_episode_hangs_is_ended_and_a_player_with_many_of_them_gives_up(
    stage: FactoryStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Game, "hangs_in", "factory")
    monkeypatch.setattr(playing, "MAX_OVERDUE", 4)
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        sessions = [{"session_id": name, "base_url": f"http://gateway/{name}/v1"} for name in "ab"]
        return httpx.Response(200, json={"index": 0, "session_seconds": 0.01, "sessions": sessions})

    async def play() -> None:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(base_url="http://gateway", transport=transport) as gateway:
            await Player(stage, trained=[0], sampling={}).play(gateway)

    with pytest.raises(SystemExit) as ended:
        asyncio.run(play())
    assert ended.value.code == 1
    assert asked == ["/rl/start_session", "/rl/end_session", "/rl/end_session"] * 2


def test_what_the_environment_raises_is_raised_where_it_is_played(stage: FactoryStage) -> None:
    with pytest.raises(ZeroDivisionError):
        asyncio.run(in_own_thread(lambda: 1 / 0, {}))
    with pytest.raises(IndexError):
        asyncio.run(stage.play(7, Seat(base_url="", shared_url=""), {}))


@pytest.mark.parametrize(("last", "code"), [("pass", 0), ("raise SystemExit('over')", 1)])
def test_player_leaves_even_if_a_thread_of_the_environment_hangs(last: str, code: int) -> None:
    program = f"""
import asyncio, threading
from asympo.tasks.environments.player import command

async def play():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    {last}

command.LEAVE_SECONDS = 0.0
asyncio.run(command.to_its_end(play()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr.decode()
