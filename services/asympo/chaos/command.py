"""`asympo chaos`: break everything, count what was lost.

Runs a real broker, two generators with the simulated engine and a learner of a tiny model, breaks them by a
seeded schedule, and has an auditor count from three independent records.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from asympo.chaos.schedule import NEEDS_SHIM, FaultKind, make_schedule
from asympo.common.commands import CommandParser, add_json_flag, say, write_json, write_table
from asympo.common.errors import BadSetting
from asympo.common.paths import given_path

T = TypeVar("T")
_MARK = "chaos.json"
_DEFAULT_DIRECTORY = Path("runs/chaos")


def main(argv: Sequence[str]) -> int:
    """0 when nothing was lost, nothing doubled and all was seen; 1 otherwise."""
    arguments = _parser().parse_args(list(argv))
    if arguments.kills < 1:
        raise BadSetting(f"--kills is {arguments.kills}: give at least 1")
    if arguments.cases < 1:
        raise BadSetting(f"--cases is {arguments.cases}: give at least 1")
    if arguments.mode == "run":
        return _end_a_run(arguments)
    if arguments.mode == "hostile":
        return _attack(arguments)
    kinds = _kinds(only=arguments.only, without=arguments.without)
    directory = _fresh(arguments.directory.resolve())
    from asympo.chaos.shim import build_shim

    shim = build_shim(directory)
    if shim is None and NEEDS_SHIM & set(kinds):
        names = ",".join(sorted(kind.value for kind in NEEDS_SHIM & set(kinds)))
        raise BadSetting(f"{names} need a C compiler (cc): install one, or give --without {names}")
    report = asyncio.run(_run(arguments, kinds, directory, shim, _broker_binary(arguments)))
    return _tell(arguments, directory, report)


def _broker_binary(arguments: argparse.Namespace) -> str:
    from asympo.local.broker import check_broker_binary, find_broker_binary

    return (check_broker_binary(arguments.broker) if arguments.broker else find_broker_binary()).path


def _attack(arguments: argparse.Namespace) -> int:
    from asympo.chaos.hostile.run import HostileRun
    from asympo.chaos.hostile.system import HostileSystem

    directory = _fresh(arguments.directory.resolve())
    system = HostileSystem(directory=directory, seed=arguments.seed, broker_binary=_broker_binary(arguments))
    say = _sayer(arguments.json)
    run = HostileRun(system=system, seed=arguments.seed, num_cases=arguments.cases, say=say)
    return _tell(arguments, directory, asyncio.run(_interruptible(run.run())).to_dict())


def _tell(arguments: argparse.Namespace, directory: Path, report: dict[str, Any]) -> int:
    (directory / _MARK).write_text(json.dumps(report, indent=1) + "\n")
    if arguments.json:
        write_json(report)
    else:
        _print_table(report)
    for problem in report["problems"]:
        sys.stderr.write(f"asympo chaos: {problem}\n")
    if report["problems"]:
        sys.stderr.write(
            f"asympo chaos: the evidence is in {directory} (faults.jsonl, logs/, checkpoints/)\n"
        )
    return 1 if report["problems"] else 0


def _end_a_run(arguments: argparse.Namespace) -> int:
    from asympo.chaos.lone_run import LoneRun

    directory = _fresh(arguments.directory.resolve())
    until = time.monotonic() + 3600 * arguments.hours if arguments.hours else None
    run = LoneRun(directory=directory, seed=arguments.seed, say=_sayer(arguments.json))
    report = run.endure(num_ends=arguments.kills, until=until).to_dict()
    (directory / _MARK).write_text(json.dumps(report, indent=1) + "\n")
    if arguments.json:
        write_json(report)
    else:
        write_table("a run that was ended", ("what", "value"), list(report.items()))
    for problem in report["problems"]:
        sys.stderr.write(f"asympo chaos: {problem}\n")
    return 1 if report["problems"] or report["trained_twice"] else 0


def _parser() -> CommandParser:
    parser = CommandParser(prog="asympo chaos", description=__doc__)
    parser.add_argument(
        "--kills", type=int, default=20, metavar="N", help="number of faults; 200 is a full run"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="decides which faults, when and where"
    )
    parser.add_argument(
        "--mode",
        choices=("fleet", "run", "hostile"),
        default="fleet",
        help="fleet: faults of broker, generators and learner; run: every end of `asympo run`; "
        "hostile: garbage through every door",
    )
    parser.add_argument(
        "--cases", type=int, default=1000, metavar="N", help="hostile: number of cases, over all doors"
    )
    parser.add_argument(
        "--hours",
        type=float,
        metavar="H",
        help="run: as many ends as fit into the time, whatever --kills says",
    )
    names = ", ".join(kind.value for kind in FaultKind)
    parser.add_argument("--only", metavar="KINDS", help=f"comma-separated, of: {names}")
    parser.add_argument("--without", metavar="KINDS", help="leave these out")
    parser.add_argument(
        "--compute-dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="fleet: what the learner computes in",
    )
    parser.add_argument("--broker", metavar="PATH", help="redis-server or valkey-server to use")
    parser.add_argument(
        "--directory",
        type=given_path,
        default=_DEFAULT_DIRECTORY,
        metavar="DIR",
        help="where all evidence is kept",
    )
    add_json_flag(parser)
    return parser


def _kinds(*, only: str | None, without: str | None) -> list[FaultKind]:
    kinds = _named(only) if only else list(FaultKind)
    left_out = set(_named(without)) if without else set()
    kinds = [kind for kind in kinds if kind not in left_out]
    if not kinds:
        raise BadSetting("no kind of fault is left")
    return kinds


def _named(text: str) -> list[FaultKind]:
    found = []
    for name in text.split(","):
        try:
            found.append(FaultKind(name.strip()))
        except ValueError:
            known = ", ".join(kind.value for kind in FaultKind)
            raise BadSetting(f"there is no kind of fault {name.strip()!r}: choose from {known}") from None
    return found


def _fresh(directory: Path) -> Path:
    """An empty directory; what an earlier run left is deleted, what anybody else left is not."""
    if directory.exists() and any(directory.iterdir()):
        if not (directory / _MARK).is_file():
            raise BadSetting(
                f"{directory} is neither empty nor from an earlier run: give another --directory"
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARK).write_text("{}\n")
    return directory


async def _run(
    arguments: argparse.Namespace, kinds: Sequence[FaultKind], directory: Path, shim: Path | None, binary: str
) -> dict[str, Any]:
    from asympo.chaos.runner import ChaosRun
    from asympo.chaos.system import System

    schedule = make_schedule(num_faults=arguments.kills, seed=arguments.seed, kinds=kinds)
    system = System(
        directory=directory,
        seed=arguments.seed,
        num_faults=len(schedule),
        broker_binary=binary,
        shim=shim,
        compute_dtype=arguments.compute_dtype,
    )
    run = ChaosRun(
        system=system,
        kinds=kinds,
        schedule=schedule,
        seed=arguments.seed,
        say=_sayer(arguments.json),
    )
    return (await _interruptible(run.run())).to_dict()


async def _interruptible(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _sayer(is_json: bool) -> Any:
    if is_json:
        return say
    from rich.console import Console

    console = Console(highlight=False)
    return lambda text: console.print(text, markup=False, soft_wrap=True)


def _print_table(report: dict[str, Any]) -> None:
    rows = []
    for name, value in report.items():
        if isinstance(value, dict):
            value = "\n".join(f"{key} {count}" for key, count in value.items())
        if name != "problems":
            rows.append((name.replace("_", " "), value))
    write_table("asympo chaos", ("", ""), rows)
