"""`asympo environment rows|play`: an environment beside services that you start yourself.

`asympo run` does both by itself.
"""

import asyncio
import sys
import tomllib
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asympo.common.commands import CommandParser, at_least_one, say
from asympo.common.errors import BadSetting
from asympo.common.lifecycle import StopSignal
from asympo.common.settings import validate
from asympo.learner.settings import SamplingOptions
from asympo.tasks.config import TaskConfig
from asympo.tasks.environments.player_command import asked_sampling, player_command
from asympo.tasks.environments.rows import write_rows

_LOOK_SECONDS = 1.0
"""Between two looks for the rows."""
_AGAIN_SECONDS = 30.0
"""Until a player that found its run ended asks again: the run may go on."""


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="asympo environment", description="Write down an environment's rows, or play it."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    rows = verbs.add_parser("rows", help="write the rows to task.path, unless the file is there")
    rows.add_argument("--hold-out", action="store_true", help="mark a share of them for evaluations")
    play = verbs.add_parser("play", help="play episodes through a gateway until the run ends")
    play.add_argument("--gateway", required=True, metavar="URL", help="of its HTTP port")
    play.add_argument("--groups", type=at_least_one, default=4, help="prompts at the same time (default 4)")
    play.add_argument(
        "--stay",
        action="store_true",
        help="wait for the rows, and play on if the run goes on after its end; ends when it is stopped",
    )
    for verb in (rows, play):
        verb.add_argument(
            "config", type=Path, metavar="CONFIG", help="settings file of the learner: [task] and [sampling]"
        )
        verb.add_argument(
            "--python",
            type=Path,
            default=Path(sys.executable),
            metavar="FILE",
            help="Python that has the environment (default: this one)",
        )
    arguments = parser.parse_args(argv)
    task, sampling = _settings(arguments.config)
    if arguments.verb == "rows":
        write_rows(arguments.python, task, Path(str(task.path)), holds_out=arguments.hold_out)
        return 0
    said = ("play", arguments.gateway, asked_sampling(sampling), str(arguments.groups))
    rows_path = Path(str(task.path))
    if not arguments.stay and not rows_path.exists():
        raise BadSetting(f"there is no {rows_path}: write it with asympo environment rows")
    with StopSignal() as stop:
        if not _has_rows(rows_path, stop):
            return 0
        return asyncio.run(_play(player_command(arguments.python, task, *said), stop, arguments))


def _settings(path: Path) -> tuple[TaskConfig, SamplingOptions]:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadSetting(f"{path} cannot be read: {error}") from error
    task = validate(TaskConfig, values.get("task", {}))
    if not task.is_environment or task.path is None:
        raise BadSetting(f"{path}: give task.name verifiers or trl-environment, and task.path, its rows")
    return task, validate(SamplingOptions, values.get("sampling", {}))


def _has_rows(path: Path, stop: StopSignal) -> bool:
    """Once somebody has written them; False if we are stopped before."""
    if not path.exists():
        say(f"Waiting for {path}, the environment's rows.")
    while not path.exists():
        if stop.wait(_LOOK_SECONDS):
            return False
    return True


async def _play(command: Sequence[str], stop: StopSignal, arguments: Namespace) -> int:
    """The player's exit code; it ends with us."""
    stopping = asyncio.ensure_future(stop.wait_async())
    try:
        code = await _play_once(command, stopping)
        if code == 0 and arguments.stay and not stopping.done():
            say("The run has ended: there is nothing left to play until it goes on.")
        while code == 0 and arguments.stay and not stopping.done():
            await asyncio.wait({stopping}, timeout=_AGAIN_SECONDS)
            code = 0 if stopping.done() else await _play_once(command, stopping)
        return code
    finally:
        stopping.cancel()


async def _play_once(command: Sequence[str], stopping: "asyncio.Future[None]") -> int:
    """The player's exit code; 0 when we were to stop before."""
    try:
        player = await asyncio.create_subprocess_exec(*command)
    except OSError as error:
        raise BadSetting(f"the environment's Python {command[0]} cannot be run: {error.strerror}") from error
    ended = asyncio.ensure_future(player.wait())
    either: set[asyncio.Future[Any]] = {stopping, ended}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        return ended.result()
    player.terminate()
    await ended
    return 0
