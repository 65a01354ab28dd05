"""`asympo log export`: every group of a run that is still there, in one file."""

import argparse
import sys
from argparse import Namespace

from asympo.common.archive import open_archive
from asympo.common.archive.export import ReadBacklog, export
from asympo.common.commands import write_json
from asympo.common.names import directory_of_run
from asympo.common.paths import given_path
from asympo.common.settings import object_store_of
from asympo.ops.access import add_broker_flags, add_checkpoint_flags, open_log
from asympo.ops.chosen import add_choice_flags, backlog, choice_of, trained_steps


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_broker_flags(parser)
    parser.add_argument("--run", required=True, metavar="RUN")
    add_checkpoint_flags(parser)
    parser.add_argument(
        "--out",
        type=given_path,
        required=True,
        metavar="FILE",
        help=".parquet or .jsonl; with {step} in its name one file for each step",
    )
    parser.add_argument(
        "--archive-only", action="store_true", help="leave out the log; then no broker is needed"
    )
    add_choice_flags(parser)


def main(arguments: Namespace) -> int:
    """Archive first, then what the learner has not made durable yet."""
    if arguments.archive_only:
        return _export(arguments, None)
    with open_log(arguments.redis_url, directory=arguments.directory, run=arguments.run) as log:
        return _export(arguments, lambda after: backlog(log, after))


def _export(arguments: Namespace, read_backlog: ReadBacklog | None) -> int:
    run_directory = directory_of_run(arguments.checkpoint_root, arguments.run)
    archive = open_archive(run_directory, object_store_of(arguments))
    num_groups = export(
        archive,
        arguments.out,
        read_backlog=read_backlog,
        choice=choice_of(arguments),
        step_of=trained_steps(run_directory),
    )
    if arguments.json:
        write_json({"groups": num_groups, "out": str(arguments.out)})
    else:
        sys.stdout.write(f"{num_groups} groups in {arguments.out}\n")
    return 0
