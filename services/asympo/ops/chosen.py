"""Which groups `asympo log show` and `asympo log export` are asked for, and where they are."""

import argparse
import bisect
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from asympo.common.archive import ArchivedEntry, open_archive
from asympo.common.archive.choice import Choice, parse_steps
from asympo.common.archive.export import StepOf, iter_groups
from asympo.common.foreign.numbers import parse_whole
from asympo.common.names import directory_of_run
from asympo.common.rollout_log import LogEntry, RunLog
from asympo.common.settings import object_store_of
from asympo.run.audit import effective_segments, read_rows

_GROUPS_AT_ONCE = 100


def add_choice_flags(parser: argparse.ArgumentParser) -> None:
    chosen = parser.add_argument_group("which groups", "Those that fit all that is given.")
    chosen.add_argument("--step", metavar="N|N-M|N-", help="trained at these steps")
    chosen.add_argument(
        "--function", default="", metavar="NAME", help="reward function that --min and --max are for"
    )
    chosen.add_argument(
        "--min", type=float, metavar="X", help="with a response whose reward, or value, is X or more"
    )
    chosen.add_argument(
        "--max", type=float, metavar="X", help="with a response whose reward, or value, is X or less"
    )
    chosen.add_argument("--prompt", default="", metavar="TEXT", help="with this text in the prompt")


def choice_of(arguments: Namespace) -> Choice:
    """What the flags say; BadSetting."""
    first, last = (None, None) if arguments.step is None else parse_steps(arguments.step)
    return Choice(
        first_step=first,
        last_step=last,
        function=arguments.function,
        at_least=arguments.min,
        at_most=arguments.max,
        prompt=arguments.prompt,
    )


def trained_steps(run_directory: Path) -> StepOf:
    """By number of the entry, from the learner's own record; entries that it does not have are of no step."""
    rows = [
        row
        for row in read_rows(run_directory / "trained.jsonl")
        if all(parse_whole(str(row.get(name))) is not None for name in ("first_sequence", "last_sequence"))
    ]
    segments = effective_segments(rows)
    ends = [row["last_sequence"] for row in segments]

    def step_of(sequence: int) -> int | None:
        place = bisect.bisect_left(ends, sequence)
        if place == len(ends) or segments[place]["first_sequence"] > sequence:
            return None
        step = segments[place].get("step")
        return step if isinstance(step, int) else None

    return step_of


def chosen_groups(log: RunLog, arguments: Namespace, choice: Choice) -> Iterator[ArchivedEntry]:
    """Of the archive, if there is one, and of the log: the steps that are wanted."""
    run_directory = directory_of_run(arguments.checkpoint_root, arguments.run)
    return iter_groups(
        open_archive(run_directory, object_store_of(arguments)),
        read_backlog=lambda after: backlog(log, after),
        choice=choice,
        step_of=trained_steps(run_directory),
    )


def backlog(log: RunLog, after: int | None) -> Sequence[LogEntry]:
    """What is in the log after a number; None: all of it."""
    if after is None:
        return list(log.reader.iter_entries())
    entries: deque[LogEntry] = deque()
    while batch := log.reader.read(after_sequence=after, max_count=_GROUPS_AT_ONCE, block_seconds=0.0):
        entries.extend(batch)
        after = batch[-1].sequence
    return list(entries)
