"""`asympo log tail|stats|show|export|replay|follow|purge`: only `purge` takes out of the log."""

import dataclasses
import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from asympo.common.codec import WireLimits, decode_group
from asympo.common.commands import CommandParser, write_json, write_table
from asympo.common.errors import BadSetting, InvalidRecord
from asympo.common.records import RolloutGroup
from asympo.common.rollout_log import LogEntry, RunLog
from asympo.ops import export, follow, replay
from asympo.ops.access import add_broker_flags, open_log

_MAX_SHOWN_CHARS = 300


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="asympo log", description="The rollout log of a run.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in (
        ("tail", "groups as they are appended"),
        ("stats", "counts of the log"),
        ("show", "prompts, responses, rewards and advantages of groups in the log"),
        ("purge", "take out what one producer appended and nobody has trained"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        add_broker_flags(verb)
        verb.add_argument("--run", required=True, metavar="RUN")
        if name == "tail":
            verb.add_argument("--count", type=int, help="stop after this many groups")
        if name == "purge":
            verb.add_argument("--producer", required=True, metavar="NAME", help="as the log shows it")
        if name == "show":
            verb.add_argument("--count", type=int, default=5, help="newest groups shown (default 5)")
            verb.add_argument("--sequence", type=int, help="only the group with this number")
            verb.add_argument("--dead", action="store_true", help="records set aside, with their reasons")
    text = "train a run again from its archive, without a broker, and compare every weight"
    replay.add_flags(verbs.add_parser("replay", help=text, description=text))
    text = "write every group that is still there, archived or in the log, into one file"
    export.add_flags(verbs.add_parser("export", help=text, description=text))
    text = "a second learner on this log, with its own cursor, objective and weights"
    follow.add_flags(verbs.add_parser("follow", help=text, description=text))
    arguments = parser.parse_args(argv)
    others = {"export": export, "replay": replay, "follow": follow}
    if arguments.verb in others:
        return others[arguments.verb].main(arguments)
    with open_log(arguments.redis_url, directory=arguments.directory, run=arguments.run) as log:
        return _VERBS[arguments.verb](log, arguments)


def _purge(log: RunLog, arguments: Namespace) -> int:
    num_groups = log.submissions.purge(arguments.producer)
    if arguments.json:
        write_json({"producer": arguments.producer, "purged": num_groups})
    else:
        sys.stdout.write(f"{num_groups} groups of {arguments.producer} are out of the log\n")
    return 0


def _stats(log: RunLog, arguments: Namespace) -> int:
    stats = dataclasses.asdict(log.stats.read())
    if arguments.json:
        write_json(stats)
    else:
        write_table(f"rollout log of {arguments.run}", ("", ""), list(stats.items()))
    return 0


def _tail(log: RunLog, arguments: Namespace) -> int:
    num_seen = 0
    for entry in log.reader.tail():
        if entry is None:
            continue
        if arguments.json:
            write_json(describe(entry))
        else:
            sys.stdout.write(one_line(entry) + "\n")
            sys.stdout.flush()
        num_seen += 1
        if arguments.count is not None and num_seen >= arguments.count:
            break
    return 0


def _show(log: RunLog, arguments: Namespace) -> int:
    if arguments.dead:
        for letter in log.dead_letters.newest(arguments.count):
            values = {"sequence": letter.sequence, "producer": letter.producer, "reason": letter.reason}
            if arguments.json:
                write_json(values)
            else:
                sys.stdout.write(f"{letter.sequence} from {letter.producer}: {letter.reason}\n")
        return 0
    if arguments.sequence is not None:
        entries = list(islice(log.reader.iter_entries(after_sequence=arguments.sequence - 1), 1))
        if not entries or entries[0].sequence != arguments.sequence:
            raise BadSetting(
                f"group {arguments.sequence} is not in the log: not yet appended, or committed and trimmed"
            )
    else:
        entries = list(deque(log.reader.iter_entries(), maxlen=arguments.count))
    for entry in entries:
        if arguments.json:
            write_json(describe(entry))
        else:
            _print_group(entry)
    if not entries and not arguments.json:
        sys.stdout.write("the log is empty: what was appended has been trained, committed and trimmed\n")
    return 0


def decoded(entry: LogEntry) -> RolloutGroup | str:
    """The group, or why it is none."""
    try:
        return decode_group(entry.payload, limits=WireLimits())
    except InvalidRecord as error:
        return str(error)


def describe(entry: LogEntry) -> dict[str, Any]:
    """A group as JSON, advantages included."""
    values: dict[str, Any] = {
        "sequence": entry.sequence,
        "group_id": entry.group_id,
        "producer": entry.producer,
        "appended_at_seconds": entry.appended_at_seconds,
        "bytes": len(entry.payload),
    }
    group = decoded(entry)
    if isinstance(group, str):
        return {**values, "invalid": group}
    mean = mean_reward(group)
    return {
        **values,
        "prompt": {"text": group.prompt.text, "num_tokens": len(group.prompt.token_ids)},
        "responses": [
            {
                "text": response.text,
                "num_tokens": len(response.token_ids),
                "reward": response.reward,
                "advantage": response.reward - mean,
                "finish_reason": response.finish_reason.value,
                "functions": dict(response.function_values),
            }
            for response in group.responses
        ],
        "unscored": [{"text": each.text, "reason": each.reason} for each in group.unscored],
        "columns": group.columns_json,
    }


def mean_reward(group: RolloutGroup) -> float:
    return sum(response.reward for response in group.responses) / max(1, len(group.responses))


def one_line(entry: LogEntry) -> str:
    """A group in a line."""
    when = time.strftime("%H:%M:%S", time.localtime(entry.appended_at_seconds))
    head = f"{entry.sequence:>7} {when} {entry.group_id:<12} {entry.producer}"
    group = decoded(entry)
    if isinstance(group, str):
        return f"{head}  invalid: {group}"
    num_tokens = sum(len(response.token_ids) for response in group.responses)
    return f"{head}  {len(group.responses)} responses, reward {mean_reward(group):.3f}, {num_tokens} tokens"


def _print_group(entry: LogEntry) -> None:
    group = decoded(entry)
    if isinstance(group, str):
        sys.stdout.write(one_line(entry) + "\n")
        return
    prompt = _shortened(group.prompt.text) or f"({len(group.prompt.token_ids)} tokens)"
    mean = mean_reward(group)
    rows = [
        [
            f"{response.reward:.3f}",
            f"{response.reward - mean:+.3f}",
            response.finish_reason.value,
            len(response.token_ids),
            _shortened(response.text),
        ]
        for response in group.responses
    ]
    write_table(
        f"group {entry.sequence} ({entry.group_id}, from {entry.producer})\n{prompt}",
        ("reward", "advantage", "end", "tokens", "response"),
        rows,
    )


def _shortened(text: str) -> str:
    """Fit for a terminal: no control characters, no markup, not too long."""
    from rich.markup import escape

    plain = "".join(char if char.isprintable() else " " for char in text)
    return escape(plain if len(plain) <= _MAX_SHOWN_CHARS else plain[: _MAX_SHOWN_CHARS - 1] + "…")


_VERBS = {"tail": _tail, "stats": _stats, "show": _show, "purge": _purge}
