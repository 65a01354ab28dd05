"""`asympo runs list|show|delete`."""

import dataclasses
import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asympo.common.commands import CommandParser, show, write_json, write_table
from asympo.common.errors import BadSetting
from asympo.common.names import directory_of_run, is_run_name
from asympo.common.rollout_log import Broker, list_runs
from asympo.ops.access import add_broker_flags, open_log
from asympo.run.deletion import delete_log
from asympo.run.directory import RunDirectory
from asympo.run.events import read_events
from asympo.run.report.page import clock_of, command_to_go_on, how_it_ended

_MAX_EVENTS = 20
_COLUMNS = ("run", "state", "step", "backlog", "trained", "model")
UNREADABLE = "unreadable"
"""State of a local run whose own note of it is damaged, or not for this user to read."""


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="asympo runs", description="The runs known to a broker, or those of this machine."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in (
        ("list", "one line for each run"),
        ("show", "settings, state and counts of one run"),
        ("delete", "delete a run's log at --redis-url; without one, its directory on this machine"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        add_broker_flags(verb)
        if name != "list":
            verb.add_argument("run", metavar="RUN")
        if name == "delete":
            verb.add_argument("--yes", action="store_true", help="confirm the deletion")
    arguments = parser.parse_args(argv)
    return {"list": _list, "show": _show, "delete": _delete}[arguments.verb](arguments)


def _list(arguments: Namespace) -> int:
    if arguments.redis_url:
        found, title = _of_broker(arguments.redis_url), "runs of the broker"
    else:
        found, title = local_runs(arguments.directory), f"runs in {arguments.directory}"
    if arguments.json:
        for run in found:
            write_json(run)
    else:
        write_table(title, _COLUMNS, [[run[column] for column in _COLUMNS] for run in found])
    return 0


def _of_broker(url: str) -> list[dict[str, Any]]:
    broker = Broker.connect(url, max_retries=2)
    try:
        return [dataclasses.asdict(run) for run in list_runs(broker)]
    finally:
        broker.close()


def local_runs(directory: Path) -> list[dict[str, Any]]:
    """Runs in a directory: as their broker shows them, or as their supervisor left them if it is down."""
    found = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        held = RunDirectory(path)
        try:
            if not (is_run_name(path.name) and held.exists):
                continue
            step, state = held.step, how_it_ended(path)[0]
        except (BadSetting, OSError):
            step, state = 0, UNREADABLE
        else:
            if url := held.live_broker_url:
                found += _of_broker(url)
                continue
        shown = {"run": path.name, "state": state, "step": step}
        found.append({**dict.fromkeys(_COLUMNS), "model": "", **shown})
    return found


def _show(arguments: Namespace) -> int:
    held = RunDirectory(arguments.directory / arguments.run)
    report = report_of(held) if not arguments.redis_url and held.exists else None
    if report is not None and not arguments.json:
        _print_report(report)
    if report is not None and not (held.path / "broker").is_dir():
        if arguments.json:
            write_json({"report": report})
        return 0
    with open_log(arguments.redis_url, directory=arguments.directory, run=arguments.run) as log:
        config, stats = log.state.config(), log.stats.read()
        values: dict[str, Any] = {
            "config": json.loads(config.to_json()) if config else None,
            "stats": dataclasses.asdict(stats),
            "commit": _fields(log.commits.last()),
            "latest_policy": _fields(log.policies.latest()),
            "bad_policies": [dataclasses.asdict(bad) for bad in log.policies.bad()],
            "generators": log.presence.generators(),
        }
    if arguments.json:
        write_json({**values, "report": report})
        return 0
    for title in ("config", "stats", "commit", "latest_policy"):
        section = values[title]
        if isinstance(section, dict):
            write_table(title.replace("_", " "), ("", ""), list(section.items()))
    columns = ("holder", "state", "policy_step", "tokens_per_second", "groups_in_flight")
    write_table(
        "generators", columns, [[each.get(name) for name in columns] for each in values["generators"]]
    )
    for bad in values["bad_policies"]:
        show(f"bad policy: step {bad['step']} of fence {bad['fence']}: {bad['reason']}")
    return 0


def report_of(held: RunDirectory) -> dict[str, Any]:
    """What a person wants to know of a run of this machine next morning.

    Accuracy, warnings and broken promises are those of the newest start that reported, at `reported_steps`.
    """
    state, last = how_it_ended(held.path)
    try:
        summary = json.loads((held.path / "summary.json").read_text())
    except (FileNotFoundError, ValueError):
        summary = {}
    return {
        "state": state,
        "ended": last,
        "go_on": command_to_go_on(held.path),
        "page": str(held.path / "report.html"),
        "warnings": summary.get("warnings", []),
        "broken_promises": summary.get("broken_promises", []),
        "held_out_accuracy": [summary.get(f"held_out_accuracy_{name}") for name in ("before", "after")],
        "held_out_policy_step_after": summary.get("held_out_policy_step_after"),
        "reported_steps": summary.get("steps"),
        "steps": held.step,
        "events": read_events(held.path)[-_MAX_EVENTS:],
    }


def _print_report(report: Mapping[str, Any]) -> None:
    write = sys.stdout.write
    write(f"{report['state']}: {report['ended']}\n")
    (before, after), reported = report["held_out_accuracy"], report["reported_steps"]
    # A start that was killed has written no report of its own.
    whose = "" if reported in (None, report["steps"]) else f" in the start that ended at step {reported}"
    write(f"steps: {report['steps']}; held-out accuracy{whose}: {before} before, {after} after\n")
    for line in (*report["broken_promises"], *report["warnings"]):
        write(f"went wrong{whose}: {line}\n")
    for event in report["events"]:
        write(f"{clock_of(event)}  {event.get('text')}\n")
    if report["go_on"]:
        write(f"go on with: {report['go_on']}\n")
    write(f"curves and samples: {report['page']}\n")
    sys.stdout.flush()


def _fields(record: Any) -> dict[str, Any] | None:
    return dataclasses.asdict(record) if record is not None else None


def _delete(arguments: Namespace) -> int:
    held = RunDirectory(directory_of_run(arguments.directory, arguments.run))
    is_local = not arguments.redis_url and held.exists
    if not arguments.yes:
        what = f"the directory {held.path}" if is_local else f"the log of {arguments.run}"
        raise BadSetting(f"this deletes {what} for good: confirm with --yes")
    if is_local:
        held.delete()
    else:
        with open_log(arguments.redis_url, directory=arguments.directory, run=arguments.run) as log:
            delete_log(log)
    if arguments.json:
        write_json({"deleted": arguments.run})
    else:
        sys.stdout.write(f"deleted {arguments.run}\n")
    return 0
