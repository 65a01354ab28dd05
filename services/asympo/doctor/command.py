"""`asympo doctor`: what is wrong with this deployment, and what to do about it."""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict

from asympo.common.commands import CommandParser, add_json_flag, write_json
from asympo.common.object_store import ObjectStoreOptions
from asympo.common.paths import given_path
from asympo.common.settings import add_object_store_flags, object_store_of, read_toml
from asympo.doctor.checks import Target, examine
from asympo.doctor.findings import Finding, Level
from asympo.learner.settings import LearnerSettings
from asympo.run.settings import RUNS_DIRECTORY

_SIGNS = {Level.OK: "ok   ", Level.NOTE: "note ", Level.WRONG: "WRONG"}

_PAGE_PORT = LearnerSettings.model_fields["http_port"].default


def parse(argv: Sequence[str]) -> Namespace:
    parser = CommandParser(
        prog="asympo doctor",
        description="Examines this deployment; exits 1 if something is wrong.",
    )
    parser.add_argument(
        "--redis-url", default=os.environ.get("REDIS_URL"), help="broker to examine; default REDIS_URL"
    )
    parser.add_argument(
        "--directory", type=given_path, default=RUNS_DIRECTORY, help="directory of this machine's runs"
    )
    parser.add_argument("--port", type=int, action="append", help=f"port to look at (default {_PAGE_PORT})")
    parser.add_argument(
        "--settings",
        type=given_path,
        metavar="FILE",
        help="a service's settings file: examine its object store",
    )
    add_object_store_flags(parser)
    parser.add_argument(
        "--reads-only",
        action="store_true",
        help="expect a generator's credentials, which may only read the object store",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="instead, try everything that only a GPU can show; takes at most ten minutes",
    )
    add_json_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    if arguments.gpu:
        from asympo.doctor.gpu.check import check_gpu

        return check_gpu(directory=arguments.directory / "gpu-check", as_json=arguments.json)
    target = Target(
        directory=arguments.directory,
        redis_url=arguments.redis_url,
        ports=tuple(arguments.port or (_PAGE_PORT,)),
        object_store=examined_store(arguments),
        is_reader=arguments.reads_only,
    )
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


def examined_store(arguments: Namespace) -> ObjectStoreOptions | None:
    """The store that flags or a settings file name; None without one. Raises BadSetting."""
    file = arguments.settings
    return object_store_of(arguments, read_toml(file).get("object_store") if file else None)


def line(finding: Finding) -> str:
    """One finding for people."""
    repair = f"\n        -> {finding.repair}" if finding.repair else ""
    return f"{_SIGNS[finding.level]} {finding.check}: {finding.text}{repair}"
