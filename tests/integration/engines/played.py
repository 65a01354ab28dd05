"""Small environments, each played at a door by the interpreter that has it."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from asympo.common.http_server import bind, serving
from asympo.engines.base import SamplingSettings
from asympo.evaluator.episodes import EpisodePlayer
from asympo.tasks.config import TaskConfig
from asympo.tasks.environments.rows import write_rows

from tests.conftest import require

V1 = Path(__file__).parents[3] / ".cache" / "verifiers-v1-tools" / "bin" / "python"
COIN = """
class Coin:
    def reset(self, side, **row):
        self.side = side

    def flip(self) -> str:
        'Flips it.'
        return self.side

    def get_reward(self):
        return float(self.side == "head")
"""
ECHO = """
import verifiers.v1 as vf

__all__ = ["Echoes"]

class Echo(vf.Task[vf.TaskData]):
    @vf.reward(weight=2.0)
    async def has_ended(self, trace):
        return 1.0

class Echoes(vf.Taskset[Echo]):
    def load(self):
        yield Echo(vf.TaskData(prompt="hi"), self.config.task)
"""
SIDES = """{"prompt": "hi", "side": "head"}
{"prompt": "hi", "side": "tail"}
"""
REWARDS = {"trl": [1.0, 0.0, 1.0], "verifiers.v1": [2.0, 2.0]}
"""Of the rows that are played, one after the other and from the first again."""


async def at_door(app: Any, kind: str, folder: Path) -> list[dict[str, Any]]:
    """What each row's episode earned. The environments lie in `folder`."""
    python = Path(sys.executable) if kind == "trl" else V1
    require(python.exists(), "verifiers (make verifiers-tools)")
    (folder / "coin.py").write_text(COIN)
    (folder / "echo.py").write_text(ECHO)
    (folder / "sides.jsonl").write_text(SIDES)
    rows = folder / "rows.jsonl"
    if kind == "trl":
        sides = str(folder / "sides.jsonl")
        task = TaskConfig(
            name="trl-environment", environment="coin:Coin", environment_rows=sides, path=str(rows)
        )
    else:
        task = TaskConfig(name="verifiers", environment="echo", path=str(rows))
    await asyncio.to_thread(write_rows, python, task, rows, holds_out=False)
    num_rows = len(rows.read_text().splitlines())
    listener = bind("127.0.0.1", 0)
    door = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    async with serving(app, listener):
        return await EpisodePlayer(python=python).play(
            task,
            [number % num_rows for number in range(len(REWARDS[kind]))],
            door=door,
            sampling=SamplingSettings(max_tokens=8),
            max_in_flight=2,
            note=lambda _: None,
        )
