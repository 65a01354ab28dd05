"""`asympo doctor`: what is wrong with this deployment, and what to do about it."""

import os
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import asdict

from asympo.common.commands import CommandParser, add_json_flag, at_least_one, write_json
from asympo.common.paths import given_path
from asympo.common.settings import (
    ServiceSettings,
    add_object_store_flags,
    object_store_of,
    read_toml,
    validate,
)
from asympo.doctor.checks import Target, examine
from asympo.doctor.findings import Finding, Level
from asympo.learner.settings import LearnerSettings
from asympo.local.ports import HIGHEST_PORT
from asympo.run.settings import RUNS_DIRECTORY

_SIGNS = {Level.OK: "ok   ", Level.NOTE: "note ", Level.WRONG: "WRONG"}

_PAGE_PORT = LearnerSettings.model_fields["http_port"].default


def parse(argv: Sequence[str]) -> Namespace:
    parser = CommandParser(
        prog="asympo doctor",
        description="Examines this deployment; exits 1 if something is wrong.",
    )
    parser.add_argument(
        "--redis-url",
        default=os.environ.get("REDIS_URL"),
        help="broker to examine; default REDIS_URL, then that of --settings",
    )
    parser.add_argument(
        "--directory",
        type=given_path,
        help=f"of this machine's runs; default the checkpoint_root of --settings, else {RUNS_DIRECTORY}",
    )
    parser.add_argument("--port", type=_port, action="append", help=f"port to look at (default {_PAGE_PORT})")
    parser.add_argument(
        "--settings",
        type=given_path,
        metavar="FILE",
        help="a service's settings file: examine its broker, checkpoint_root and object store",
    )
    add_object_store_flags(parser)
    parser.add_argument(
        "--reads-only",
        action="store_true",
        help="expect a generator's rights, which may only read checkpoint_root and object store",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="instead, try everything that only a GPU can show; takes at most ten minutes",
    )
    add_json_flag(parser)
    return parser.parse_args(argv)


def _port(text: str) -> int:
    number = at_least_one(text)
    if number > HIGHEST_PORT:
        raise ArgumentTypeError(f"needs a port from 1 to {HIGHEST_PORT}, not {text}")
    return number


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    if arguments.gpu:
        from asympo.doctor.gpu.check import check_gpu

        directory = arguments.directory or RUNS_DIRECTORY
        return check_gpu(directory=directory / "gpu-check", as_json=arguments.json)
    target = target_of(arguments)
    findings = []
    for finding in examine(target):
        findings.append(finding)
        if not arguments.json:
            sys.stdout.write(line(finding) + "\n")
    num_wrong = sum(finding.level is Level.WRONG for finding in findings)
    if arguments.json:
        values = {"is_healthy": num_wrong == 0, "findings": [asdict(finding) for finding in findings]}
        write_json(values)
    elif num_wrong == 0:
        sys.stdout.write("nothing is wrong\n")
    return 1 if num_wrong else 0


def target_of(arguments: Namespace) -> Target:
    """What flags name, and where they do not what a settings file does. Raises BadSetting."""
    values = read_toml(arguments.settings) if arguments.settings else {}
    names = {"redis_url", "checkpoint_root"} & values.keys()
    service = validate(ServiceSettings, {name: values[name] for name in names})
    root = service.checkpoint_root if "checkpoint_root" in names else None
    return Target(
        directory=arguments.directory or root or RUNS_DIRECTORY,
        redis_url=arguments.redis_url or (service.redis_url if "redis_url" in names else None),
        ports=tuple(arguments.port or (_PAGE_PORT,)),
        checkpoint_root=root,
        object_store=object_store_of(arguments, values.get("object_store")),
        is_reader=arguments.reads_only,
    )


def line(finding: Finding) -> str:
    """One finding for people."""
    repair = f"\n        -> {finding.repair}" if finding.repair else ""
    return f"{_SIGNS[finding.level]} {finding.check}: {finding.text}{repair}"
