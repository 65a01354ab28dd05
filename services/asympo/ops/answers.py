"""Answers of evaluations, for people: `asympo log show --eval NAME`, `asympo eval --show`."""

import dataclasses
from argparse import Namespace
from collections import deque

from asympo.common.commands import show, write_json, write_table
from asympo.common.foreign.text import printable
from asympo.common.rollout_log import RunLog
from asympo.common.rollout_log.evals.sample import EvalSample


def show_answers(log: RunLog, arguments: Namespace) -> int:
    """The newest answers of one evaluation that are on the broker."""
    newest: deque[EvalSample] = deque(maxlen=arguments.count)
    after, is_all = "0", False
    while not is_all:
        found, reached = log.evaluations.samples_after(after)
        newest.extend(each for each in found if each.eval == arguments.eval)
        after, is_all = reached, reached == after
    for sample in newest:
        if arguments.json:
            write_json(dataclasses.asdict(sample))
        else:
            write_sample(sample)
    if not newest and not arguments.json:
        show(f"no answer of the evaluation {arguments.eval} is kept")
    return 0


def write_sample(sample: EvalSample) -> None:
    """One prompt and what was answered."""
    names = sorted({name for each in sample.responses for name in each.functions})
    policy = "" if sample.policy_step is None else f", policy {sample.policy_step}"
    right = f"\nanswer: {printable(sample.answer)}" if sample.answer else ""
    write_table(
        f"{printable(sample.eval)}{policy}\n{printable(sample.prompt)}{right}",
        ("reward", *map(printable, names), "tokens", "response"),
        [
            [
                "-" if each.reward is None else f"{each.reward:.3f}",
                *(f"{each.functions[name]:.3f}" if name in each.functions else "-" for name in names),
                each.num_tokens,
                f"({each.reason}) {each.text}" if each.reason else each.text,
            ]
            for each in sample.responses
        ],
    )
