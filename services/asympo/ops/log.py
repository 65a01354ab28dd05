"""`asympo log tail|stats|show|export|replay|follow|acl|purge|retry`: only the last two change anything."""

import dataclasses
import sys
import time
from argparse import Namespace
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any

from asympo.common.archive.choice import Choice
from asympo.common.codec import WireLimits, decode_group, encode_group
from asympo.common.commands import CommandParser, at_least_one, show, write_json, write_table
from asympo.common.errors import BadSetting, InvalidRecord
from asympo.common.foreign.text import printable
from asympo.common.group_ids import retried_id
from asympo.common.records import Response, RolloutGroup
from asympo.common.rollout_log import LogEntry, RunLog
from asympo.common.rollout_log.dead_letters import MAX_DEAD_LETTERS
from asympo.ops import broker_users, export, follow, replay
from asympo.ops.access import add_broker_flags, add_checkpoint_flags, open_log
from asympo.ops.answers import show_answers
from asympo.ops.chosen import add_choice_flags, choice_of, chosen_groups
from asympo.ops.texts import Texts


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(prog="asympo log", description="The rollout log of a run.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in (
        ("tail", "groups as they are appended"),
        ("stats", "counts of the log"),
        ("show", "prompts, responses, rewards and advantages of groups in the log"),
        ("purge", "take out what one producer appended and no learner has read, or what was set aside"),
        ("retry", "append records that were set aside once more, as groups of their own"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        add_broker_flags(verb)
        verb.add_argument("--run", required=True, metavar="RUN")
        if name == "tail":
            verb.add_argument("--count", type=at_least_one, help="stop after this many groups")
        if name == "purge":
            what = verb.add_mutually_exclusive_group(required=True)
            what.add_argument("--producer", metavar="NAME", help="name of the producer, as the log shows it")
            what.add_argument("--dead", action="store_true", help="records that were set aside")
        if name == "show":
            verb.add_argument("--count", type=at_least_one, default=5, help="newest groups shown (default 5)")
            only = verb.add_mutually_exclusive_group()
            only.add_argument("--sequence", type=int, help="only the group with this number")
            only.add_argument(
                "--dead", action="store_true", help="records that were set aside, with their reasons"
            )
            only.add_argument("--eval", metavar="NAME", help="answers of this evaluation")
            add_choice_flags(verb)
            add_checkpoint_flags(verb)
    text = "train a run again from its archive, without a broker, and compare every weight"
    replay.add_flags(verbs.add_parser("replay", help=text, description=text))
    text = "write every group that is still there, archived or in the log, into one file"
    export.add_flags(verbs.add_parser("export", help=text, description=text))
    text = "a second learner on this log, with its own cursor, objective and weights"
    follow.add_flags(verbs.add_parser("follow", help=text, description=text))
    text = "print what a user of the broker may do, as a line of the server's ACL file"
    broker_users.add_flags(verbs.add_parser("acl", help=text, description=text))
    arguments = parser.parse_args(argv)
    others = {"export": export, "replay": replay, "follow": follow, "acl": broker_users}
    if arguments.verb in others:
        return others[arguments.verb].main(arguments)
    with open_log(arguments.redis_url, directory=arguments.directory, run=arguments.run) as log:
        return _VERBS[arguments.verb](log, arguments)


def _retry(log: RunLog, arguments: Namespace) -> int:
    for letter in reversed(log.dead_letters.newest(MAX_DEAD_LETTERS)):
        group_id = retried_id(letter.letter_id)
        values: dict[str, Any] = {"sequence": letter.sequence}
        try:
            group = decode_group(letter.payload, limits=WireLimits())
            payload = encode_group(dataclasses.replace(group, group_id=group_id))
        except InvalidRecord as error:
            values |= {"state": "stays", "reason": str(error)}
            said = f"stays: {error}"
        else:
            sequence = log.dead_letters.retry(letter, payload, group_id=group_id)
            values |= {"state": "gone" if sequence is None else "appended", "appended_as": sequence}
            said = "is gone" if sequence is None else f"is group {sequence} now"
        if arguments.json:
            write_json(values)
        else:
            show(f"{letter.sequence} {said}")
    return 0


def _purge(log: RunLog, arguments: Namespace) -> int:
    if arguments.dead:
        num_letters = log.dead_letters.purge()
        if arguments.json:
            write_json({"purged": num_letters})
        else:
            show(f"{num_letters} records that were set aside are deleted")
        return 0
    num_groups, num_left = log.submissions.purge(arguments.producer)
    if arguments.json:
        write_json({"producer": arguments.producer, "purged": num_groups, "left": num_left})
    else:
        stays = f"; {num_left} that the learner has read already stay, and are trained" if num_left else ""
        sys.stdout.write(f"{num_groups} groups of {arguments.producer} are out of the log{stays}\n")
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
            show(one_line(entry))
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
                show(f"{letter.sequence} from {letter.producer}: {letter.reason}")
        return 0
    choice = choice_of(arguments)
    if arguments.eval is not None:
        return show_answers(log, arguments)
    if arguments.sequence is None and not choice.is_all:
        return _show_chosen(log, arguments, choice)
    if not choice.is_all:
        raise BadSetting("--sequence names one group: give it alone")
    if arguments.sequence is not None:
        entries = list(islice(log.reader.iter_entries(after_sequence=arguments.sequence - 1), 1))
        if not entries or entries[0].sequence != arguments.sequence:
            raise BadSetting(
                f"group {arguments.sequence} is not in the log: not yet appended, or committed and trimmed"
            )
    else:
        entries = list(deque(log.reader.iter_entries(), maxlen=arguments.count))
    texts = Texts(log)
    for entry in entries:
        if arguments.json:
            write_json(describe(entry, texts))
        else:
            _print_group(entry, texts)
    if not entries and not arguments.json:
        show("the log is empty: what was appended has been trained, committed and trimmed")
    return 0


def _show_chosen(log: RunLog, arguments: Namespace, choice: Choice) -> int:
    """The newest groups of archive and log that are wanted."""
    newest: deque[tuple[LogEntry, dict[str, Any]]] = deque(maxlen=arguments.count)
    num_found, texts = 0, Texts(log)
    for archived in chosen_groups(log, arguments, choice):
        entry = archived.to_log_entry()
        values = {**describe(entry, texts), "step": archived.step}
        text = values.get("prompt", {}).get("text", "")
        if choice.takes(step=archived.step, prompt=text, responses=values.get("responses", ())):
            newest.append((entry, values))
            num_found += 1
    for entry, values in newest:
        if arguments.json:
            write_json(values)
        else:
            _print_group(entry, texts, step=values["step"])
    if not arguments.json:
        show(
            f"{len(newest)} of {num_found} groups that fit; --count shows more" if newest else "no group fits"
        )
    return 0


def decoded(entry: LogEntry, texts: Texts | None = None) -> RolloutGroup | str:
    """The group, or why it is none."""
    try:
        group = decode_group(entry.payload, limits=WireLimits())
    except InvalidRecord as error:
        return str(error)
    return group if texts is None else texts.added(group)


def describe(entry: LogEntry, texts: Texts | None = None) -> dict[str, Any]:
    """A group as JSON, advantages included."""
    values: dict[str, Any] = {
        "sequence": entry.sequence,
        "group_id": entry.group_id,
        "producer": entry.producer,
        "appended_at_seconds": entry.appended_at_seconds,
        "bytes": len(entry.payload),
    }
    group = decoded(entry, texts)
    if isinstance(group, str):
        return {**values, "invalid": group}
    mean = mean_reward(group)
    return {
        **values,
        "prompt": {"text": group.prompt.text, "num_tokens": len(group.prompt.token_ids)},
        "responses": [
            {
                "text": response.text,
                "num_tokens": len(response.all_token_ids),
                "num_segments": len(response.segments),
                "reward": response.reward,
                "advantage": response.reward - mean,
                "finish_reason": response.finish_reason.value,
                "functions": dict(response.function_values),
                "notes": dict(response.function_notes),
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
    num_tokens = sum(len(response.all_token_ids) for response in group.responses)
    return f"{head}  {len(group.responses)} responses, reward {mean_reward(group):.3f}, {num_tokens} tokens"


def _print_group(entry: LogEntry, texts: Texts, *, step: int | None = None) -> None:
    group = decoded(entry, texts)
    if isinstance(group, str):
        show(one_line(entry))
        return
    prompt = printable(group.prompt.text) or f"({len(group.prompt.token_ids)} tokens)"
    when = "" if step is None else f", step {step}"
    mean = mean_reward(group)
    names = sorted({name for response in group.responses for name in response.function_values})
    rows = [
        [
            f"{response.reward:.3f}",
            f"{response.reward - mean:+.3f}",
            *(_value(response.function_values.get(name)) for name in names),
            response.finish_reason.value,
            len(response.all_token_ids),
            response.text or _in_segments(response),
        ]
        for response in group.responses
    ]
    write_table(
        f"group {entry.sequence} ({entry.group_id}, from {printable(entry.producer)}{when})\n{prompt}",
        ("reward", "advantage", *map(printable, names), "end", "tokens", "response"),
        rows,
    )


def _in_segments(response: Response) -> str:
    return f"({len(response.segments)} segments)" if response.segments else ""


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


_VERBS = {"tail": _tail, "stats": _stats, "show": _show, "purge": _purge, "retry": _retry}
