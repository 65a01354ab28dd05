"""`asympo init [FOLDER]`: a settings file, data and a reward file with its test, to start from."""

import sys
from collections.abc import Sequence
from pathlib import Path

from asympo.common.commands import CommandParser
from asympo.common.errors import BadSetting

_SETTINGS = """\
# `asympo task show run.toml` shows what is asked, `asympo task score run.toml --responses responses.jsonl`
# scores responses by hand, `asympo run run.toml` trains.
[run]
name = "my-task"
model = "HuggingFaceTB/SmolLM2-135M-Instruct"   # Hugging Face id or path

[run.task]
data = "data.jsonl"                     # or CSV, Parquet, a folder of save_to_disk, owner/name on the hub
held_out_fraction = 0.25                # never trained on; measures the accuracy before and after

[[run.task.rewards]]
function = "rewards.py:exact_answer"    # every column of a row is a keyword argument
weight = 1.0

[[run.task.rewards]]
function = "rewards.py:is_short"
weight = 0.1

[run.sampling]
max_tokens = 32

[learner]
group_size = 8
groups_per_step = 4
total_steps = 20
"""

_REWARDS = '''\
"""What a response earns: one function for each reason to prefer one over another."""


def exact_answer(completions, answer, **columns):
    """1 where the response is the answer. All responses to one prompt at once, as TRL calls functions."""
    return [float(completion.strip() == right) for completion, right in zip(completions, answer)]


def is_short(response_text, **columns):
    """1 for at most 20 characters, less for more. One response at a time."""
    return min(1.0, 20 / max(1, len(response_text)))
'''

_TEST = '''\
"""Rewards are worth a test: `pytest test_rewards.py`."""

from rewards import exact_answer, is_short


def test_exact_answer_is_rewarded():
    assert exact_answer(completions=["4", " 4\\n", "5"], answer=["4"] * 3) == [1.0, 1.0, 0.0]


def test_short_responses_earn_more():
    assert is_short("4") == 1.0
    assert is_short("4" * 40) == 0.5
'''

_ROWS = "".join(
    f'{{"prompt": "What is {a} + {b}? Answer with the number alone.", "answer": "{a + b}"}}\n'
    for a in range(2, 6)
    for b in range(2, 6)
)
_RESPONSES = '{"row": 1, "response": "4"}\n{"row": 1, "response": "It is 4."}\n'
FILES = {
    "run.toml": _SETTINGS,
    "rewards.py": _REWARDS,
    "test_rewards.py": _TEST,
    "data.jsonl": _ROWS,
    "responses.jsonl": _RESPONSES,
}


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="asympo init", description="Write a settings file, data, and a reward file with its test."
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(), metavar="FOLDER", help="default: here"
    )
    folder = parser.parse_args(argv).folder
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise BadSetting(f"{folder / there[0]} exists already: give another folder; nothing was written")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in FILES.items():
            (folder / name).write_text(text)
    except OSError as error:
        raise BadSetting(f"{folder} cannot be written: {error.strerror}") from None
    sys.stdout.write(
        f"Wrote {', '.join(FILES)} to {folder.absolute()}.\nNext: asympo task show {folder / 'run.toml'}\n"
    )
    return 0
