"""`asympo log export`: every group of a run that is still there, in one file."""

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence

from asympo.common.archive import open_archive
from asympo.common.archive.export import ReadBacklog, export
from asympo.common.commands import write_json
from asympo.common.names import directory_of_run
from asympo.common.paths import given_path
from asympo.common.rollout_log import LogEntry, RunLog
from asympo.common.settings import object_store_of
from asympo.ops.access import add_broker_flags, add_checkpoint_flags, open_log

_GROUPS_AT_ONCE = 100


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_broker_flags(parser)
    parser.add_argument("--run", required=True, metavar="RUN")
    add_checkpoint_flags(parser)
    parser.add_argument("--out", type=given_path, required=True, metavar="FILE", help=".parquet or .jsonl")
    parser.add_argument(
        "--archive-only", action="store_true", help="leave out the log; then no broker is needed"
    )


def main(arguments: Namespace) -> int:
    """Archive first, then what the learner has not made durable yet."""
    if arguments.archive_only:
        return _export(arguments, None)
    with open_log(arguments.redis_url, directory=arguments.directory, run=arguments.run) as log:
        return _export(arguments, lambda after: _backlog(log, after))


def _export(arguments: Namespace, read_backlog: ReadBacklog | None) -> int:
    run_directory = directory_of_run(arguments.checkpoint_root, arguments.run)
    archive = open_archive(run_directory, object_store_of(arguments))
    num_groups = export(archive, arguments.out, read_backlog=read_backlog)
    if arguments.json:
        write_json({"groups": num_groups, "out": str(arguments.out)})
    else:
        sys.stdout.write(f"{num_groups} groups in {arguments.out}\n")
    return 0


def _backlog(log: RunLog, after: int | None) -> Sequence[LogEntry]:
    if after is None:
        return list(log.reader.iter_entries())
    entries: list[LogEntry] = []
    while batch := log.reader.read(after_sequence=after, max_count=_GROUPS_AT_ONCE, block_seconds=0.0):
        entries.extend(batch)
        after = batch[-1].sequence
    return entries
