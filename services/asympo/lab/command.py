"""`asympo lab stability`: is the loss stable on stale data?"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asympo import __version__
from asympo.common.checkpoints.digests import available_cores
from asympo.common.commands import CommandParser, add_json_flag, say, write_json
from asympo.common.errors import AsympoError, BadSetting
from asympo.common.paths import given_path
from asympo.lab.duration import describe_paper, describe_study, require_gpus, write_paper_runs
from asympo.lab.presets import PRESETS, Grid, Preset, find_preset

PAPER = "paper"
_EXAMPLES = Path(__file__).parents[3] / "examples"


def main(argv: Sequence[str]) -> int:
    """Runs one study and writes its report."""
    arguments = _parser().parse_args(list(argv))
    if arguments.preset == PAPER:
        return _paper(arguments)
    preset, grids = choose(arguments)
    directory = arguments.out or Path("runs") / "lab" / preset.name
    if (directory / "cells").exists() and not arguments.resume:
        raise BadSetting(f"there are results in {directory}: go on with --resume, or give another --out")
    for line in describe_study(preset, grids, num_cells=_count(preset, grids)):
        say(line)
    if arguments.dry_run:
        return 0
    return _run(arguments, argv, preset, grids, directory)


def _parser() -> CommandParser:
    parser = CommandParser(prog="asympo lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="WHAT")
    text = "trains every arm on responses that are exactly K optimizer steps old"
    verb = verbs.add_parser("stability", help=text, description=text)
    verb.add_argument("--preset", choices=(*PRESETS, PAPER), default="laptop")
    verb.add_argument(
        "--grid",
        action="append",
        metavar="NAME",
        help="a grid of the preset, or full for all; may be given several times",
    )
    verb.add_argument("--out", type=given_path, help="directory of cells and report; default runs/lab/PRESET")
    verb.add_argument("--resume", action="store_true", help="keep the cells that are there")
    verb.add_argument("--workers", type=int, help="processes of one thread each; default: one per core")
    verb.add_argument(
        "--dry-run", action="store_true", help="print how much memory and time it needs, and stop"
    )
    add_json_flag(verb)
    verb.add_argument(
        "--publish", type=given_path, metavar="DIR", help="also write the report and its pictures there"
    )
    verb.add_argument(
        "--update",
        type=given_path,
        action="append",
        metavar="FILE",
        help="a document that gets the headline table between its two markers",
    )
    for name, kind, text in (
        ("arms", str, "arms instead of the grid's"),
        ("staleness", int, "values of K instead of the grid's"),
        ("learning-rates", float, "learning rates instead of the grid's"),
        ("seeds", int, "seeds instead of the grid's"),
    ):
        verb.add_argument(f"--{name}", type=kind, nargs="+", metavar="VALUE", help=text)
    verb.add_argument("--steps", type=int, help="optimizer steps, instead of those of the grid")
    return parser


def choose(arguments: argparse.Namespace) -> tuple[Preset, tuple[Grid, ...]]:
    """Preset and grids with what the flags change; raises BadSetting."""
    preset = find_preset(arguments.preset)
    try:
        grids = preset.grids_named(arguments.grid or ())
    except KeyError as error:
        names = ", ".join([*(grid.name for grid in preset.grids), "full"])
        raise BadSetting(f"{preset.name} has no grid {error.args[0]}: choose from {names}") from None
    changes: dict[str, Any] = {
        name: tuple(value)
        for name in ("arms", "staleness", "learning_rates", "seeds")
        if (value := getattr(arguments, name))
    }
    if arguments.steps is not None:
        changes["steps"] = arguments.steps
    for name, least in (("steps", 1), ("workers", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise BadSetting(f"--{name} is {value}: at least {least} is needed")
    grids = tuple(replace(grid, **changes) for grid in grids)
    _check_order(preset, grids)
    return preset, grids


def _check_order(preset: Preset, grids: Sequence[Grid]) -> None:
    """A grid of what passed needs one before it in which something can pass."""
    for index, grid in enumerate(grids):
        before = [
            each
            for each in grids[:index]
            if each.constants != "passed" and not each.is_confirmation(preset.confirming_seeds)
        ]
        if grid.constants == "passed" and not before:
            seeds = " ".join(str(seed) for seed in preset.confirming_seeds)
            raise BadSetting(
                f"the grid {grid.name} tries again what passed in the grids before it on other seeds than "
                f"{seeds}: name one, such as {preset.grids[0].name}, before it"
            )


def _run(
    arguments: argparse.Namespace, argv: Sequence[str], preset: Preset, grids: Sequence[Grid], directory: Path
) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from asympo.lab.analysis import summarise
    from asympo.lab.report import find_marks, headline, update_document, write_report
    from asympo.lab.study import Study

    for document in arguments.update or ():
        find_marks(document)
    began = time.monotonic()
    versions = _versions()
    num_found = len(list((directory / "cells").glob("*.json")))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("cells", total=None)
        study = Study(
            preset,
            directory=directory,
            workers=arguments.workers or available_cores(),
            versions={name: versions[name] for name in ("asympo", "torch", "transformers")},
            say=progress.console.print,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
        )
        results = study.run(grids)
    summary = {
        "preset": preset.name,
        "grids": [grid.name for grid in grids],
        "seeds": sorted({seed for grid in grids for seed in grid.seeds}),
        "command": shlex.join(["asympo", "lab", *argv]),
        "versions": versions,
        "wall_seconds": time.monotonic() - began,
        "cells_found": num_found,
        **summarise(results, confirming_seeds=preset.confirming_seeds),
    }
    if len(summary["made_by"]) > 1:
        say("cells of different versions or devices are mixed: the end of the report lists them")
    for folder in filter(None, (directory, arguments.publish)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        write_report(results, summary, preset=preset, directory=folder)
    for document in arguments.update or ():
        update_document(document, headline(summary))
    if arguments.json:
        write_json(summary)
    else:
        sys.stdout.write((directory / "headline.md").read_text())
        sys.stdout.write(f"\nreport: {directory / 'report.md'} and report.html\n")
    return 0


def _count(preset: Preset, grids: Sequence[Grid]) -> int:
    per_arm = sum(
        len(grid.staleness) * len(grid.learning_rates) * len(grid.seeds) * len(grid.kinds)
        * len(grid.optimizers) * len(grid.compute_dtypes) * len(grid.arms) * (1 + (grid.constants == "both"))
        for grid in grids
    )  # fmt: skip
    tuned = {arm for grid in grids if grid.constants == "tuned" for arm in grid.arms}
    return per_arm + (2 * len(preset.tuning.learning_rates) * len(tuned) if preset.tuning else 0)


def _versions() -> dict[str, str]:
    import platform

    import torch
    import transformers

    try:
        commit = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    except FileNotFoundError:
        commit = ""
    return {
        "asympo": f"{__version__} {commit}".strip(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": f"{available_cores()} cores, {platform.machine()}",
    }


def _paper(arguments: argparse.Namespace) -> int:
    from asympo.run.prepare.machine import look_at_machine

    for line in describe_paper(_EXAMPLES):
        say(line)
    if arguments.dry_run:
        return 0
    directory = arguments.out or Path("runs") / "lab" / PAPER
    paths = write_paper_runs(_EXAMPLES, directory)
    say(f"{len(paths)} settings files in {directory}, each for `asympo run`")
    require_gpus(len(look_at_machine().gpus))
    for path in paths:
        command = [sys.executable, "-m", "asympo.cli", "run", str(path)]
        if subprocess.run(command, check=False).returncode != 0:
            raise AsympoError(f"the run of {path} failed: fix it, then give the command again")
    return 0
