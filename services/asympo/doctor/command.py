"""`asympo doctor`: what is wrong with this deployment, and what to do about it."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from asympo.doctor.checks import Finding, Level, Target, examine
from asympo.run.command import CommandParser

_SIGNS = {Level.OK: "ok   ", Level.NOTE: "note ", Level.WRONG: "WRONG"}


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="asympo doctor",
        allow_abbrev=False,
        description="Examines this deployment; exits 1 if something is wrong.",
    )
    parser.add_argument(
        "--redis-url", default=os.environ.get("REDIS_URL"), help="broker to examine; default REDIS_URL"
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("runs"), help="directory of this machine's runs"
    )
    parser.add_argument("--port", type=int, action="append", help="port to look at (default 8080)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    arguments = parser.parse_args(argv)
    target = Target(
        directory=arguments.directory,
        redis_url=arguments.redis_url,
        ports=tuple(arguments.port or (8080,)),
    )
    findings = []
    for finding in examine(target):
        findings.append(finding)
        if not arguments.json:
            sys.stdout.write(line(finding) + "\n")
    num_wrong = sum(finding.level is Level.WRONG for finding in findings)
    if arguments.json:
        values = {"is_healthy": num_wrong == 0, "findings": [asdict(finding) for finding in findings]}
        sys.stdout.write(json.dumps(values) + "\n")
    elif num_wrong == 0:
        sys.stdout.write("nothing is wrong\n")
    return 1 if num_wrong else 0


def line(finding: Finding) -> str:
    """One finding for people."""
    repair = f"\n        -> {finding.repair}" if finding.repair else ""
    return f"{_SIGNS[finding.level]} {finding.check}: {finding.text}{repair}"
