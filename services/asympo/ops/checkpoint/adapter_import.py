"""`asympo checkpoint import`: a PEFT adapter and its base become one model that a run can start from."""

import dataclasses
from argparse import ArgumentParser, Namespace

from asympo.common.commands import add_json_flag, show, write_json
from asympo.common.paths import given_path
from asympo.ops.checkpoint.new_directory import refuse_if_there, written_beside


def add_flags(parser: ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", type=given_path, help="directory that PEFT has written")
    parser.add_argument(
        "--to", type=given_path, required=True, metavar="DIR", help="new directory to write the model to"
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="what the adapter was trained on, if not where it says: a directory, or an id on the hub",
    )
    add_json_flag(parser)


def main(arguments: Namespace) -> int:
    """0 once the model was loaded again and holds the sum."""
    to = refuse_if_there(arguments.to)
    from asympo.learner.publish.adapter import merge

    with written_beside(to) as unfinished:
        merged = merge(arguments.adapter, unfinished, base=arguments.base)
    if arguments.json:
        write_json({"path": str(to), **dataclasses.asdict(merged)})
    else:
        show(f"{to}: {merged.base} with the adapter, {merged.changed} of {merged.tensors} tensors changed")
        show(f"start a run from it with model = {str(to)!r} in [learner]")
    return 0
