"""`SPEC rows OUT`, `SPEC play GATEWAY SAMPLING GROUPS` and `SPEC evaluate DOOR SAMPLING EPISODES`.

SPEC and SAMPLING are JSON. SPEC says the `kind` and name of the `environment`, its `arguments`, the `source`
of its rows if it brings none, and the file with its `rows`. `evaluate` reads the numbers of the rows to play
from its input, one for each episode, and writes what each earned to its output.
"""

import asyncio
import gc
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

from .playing import DoorPlayer, Player
from .stage import KEY_VARIABLE, StagedPlay

LOAD_SECONDS = 600.0
"""For an environment to be there."""
LEAVE_SECONDS = 30.0
"""For what an environment does when its process ends: threads of it that hang would keep the process."""


@contextmanager
def exit_is_failure() -> Iterator[None]:
    """An environment that calls exit() has not come to its end, which is what a status of 0 says."""
    try:
        yield
    except SystemExit as ended:
        if ended.code:
            raise
        raise SystemExit("the environment ended its process with exit()") from None


@exit_is_failure()
def main(spec: str, verb: str, *rest: str) -> None:
    # What the environment prints is not an answer of ours.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    said: dict[str, Any] = json.loads(spec)
    loading = leave_after(LOAD_SECONDS, code=1)
    # Environments bring large libraries: nothing of them is garbage, and to look for some takes its time.
    gc.disable()
    stage = open_stage(said, are_written=verb != "rows")
    gc.freeze()
    gc.enable()
    if verb == "rows":
        lines = (json.dumps(row, default=str) for row in stage.rows())
        Path(rest[0]).write_text("".join(f"{line}\n" for line in lines))
        return
    rows = [json.loads(line) for line in Path(said["rows"]).read_bytes().splitlines()]
    check_rows(stage, rows)
    loading.cancel()
    sampling, num_at_once = json.loads(rest[1]), int(rest[2])
    if verb == "play":
        trained = [number for number, row in enumerate(rows) if not row.get("held_out")]
        player = Player(stage, trained=trained, sampling=sampling)
        asyncio.run(to_its_end(play(player, rest[0], num_at_once, stage.serving())))
    else:
        player_at_door = DoorPlayer(stage, door=rest[0], sampling=sampling, answers=answers)
        asyncio.run(to_its_end(player_at_door.run([int(line) for line in sys.stdin], num_at_once)))


async def to_its_end(playing: Coroutine[Any, Any, None]) -> None:
    """Plays, and sees to it that the process ends soon after."""
    code = 1
    try:
        await playing
        code = 0
    finally:
        leave_after(LEAVE_SECONDS, code=code)


def leave_after(seconds: float, *, code: int) -> threading.Timer:
    """Ends the process then, whatever it still waits for, unless the timer is cancelled before."""

    def leave() -> None:
        sys.stdout.flush()
        os._exit(code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    return timer


def open_stage(said: dict[str, Any], *, are_written: bool) -> StagedPlay:
    """The environment by its kind; which generation of verifiers is installed decides between its two."""
    name, arguments = said["environment"], said["arguments"]
    if said["kind"] == "trl-environment":
        from .factory_stage import FactoryStage

        rows = Path(str(said["rows"] if are_written else said["source"]))
        return FactoryStage(name, arguments, rows, are_written=are_written)
    if importlib.util.find_spec("verifiers.legacy") is not None:
        from .legacy_stage import LegacyStage

        return LegacyStage(name, arguments)
    from .taskset_stage import TasksetStage

    return TasksetStage(name, arguments)


def check_rows(stage: StagedPlay, written: list[dict[str, Any]]) -> None:
    """Ends when the environment no longer asks what it asked when its rows were written down."""
    found = json.loads(json.dumps(stage.rows(), default=str))
    if [row.get("prompt") for row in found] != [row.get("prompt") for row in written]:
        raise SystemExit("the environment's rows are no longer those that the run was created with")


async def play(
    player: Player, address: str, num_groups: int, serving: AbstractAsyncContextManager[Any]
) -> None:
    import httpx

    token = os.environ.get(KEY_VARIABLE)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with serving, httpx.AsyncClient(base_url=address, headers=headers, timeout=90) as gateway:
        await asyncio.gather(*(player.play(gateway) for _ in range(num_groups)))
