"""`asympo log replay`: trains a run again from its archive, without a broker, and compares every weight."""

import argparse
import dataclasses
import os
import sys
from argparse import Namespace
from typing import Any

from asympo.common.commands import add_json_flag, write_json, write_table
from asympo.common.paths import given_path
from asympo.common.settings import object_store_of
from asympo.common.telemetry import set_up_logging
from asympo.local.heap import large_imports
from asympo.ops.access import add_checkpoint_flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb; imports nothing heavy."""
    parser.add_argument("--run", required=True, metavar="RUN")
    add_checkpoint_flags(parser)
    parser.add_argument("--from-state", metavar="NAME", help="begin with this training state")
    parser.add_argument("--until-step", type=int, metavar="N", help="stop after this step")
    parser.add_argument(
        "--out", type=given_path, metavar="DIR", help="write the final weights here, in float32"
    )
    parser.add_argument(
        "--any-build", action="store_true", help="continue even if this build cannot reproduce the same bits"
    )
    add_json_flag(parser)


def main(arguments: Namespace) -> int:
    """0 when nothing that was compared differs."""
    # Settings, decisions and weights come from storage: nothing is looked up elsewhere.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    set_up_logging(service="replay", log_format="text", level="warning" if arguments.json else "info")
    with large_imports():
        from asympo.learner.replay.archive_replay import Replay

    replay = Replay(
        checkpoint_root=arguments.checkpoint_root,
        run=arguments.run,
        object_store=object_store_of(arguments),
        from_state=arguments.from_state,
        any_build=arguments.any_build,
    )
    report = replay.run(until_step=arguments.until_step)
    if arguments.out is not None:
        replay.save(arguments.out)
    values: dict[str, Any] = dataclasses.asdict(report)
    if arguments.json:
        write_json(values)
    else:
        difference = report.first_difference
        if difference is not None:
            values["first_difference"] = f"{difference.tensor} in {difference.where}, step {difference.step}"
        write_table(f"replay of {arguments.run}", ("", ""), list(values.items()))
        if report.weights_identical is None:
            sys.stdout.write("nothing was compared: no state or policy of the run lies on the way\n")
    return 1 if report.weights_identical is False else 0
