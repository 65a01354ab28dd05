"""Scores made responses with one library's own reward functions, by hand and through ours; prints JSON.

Runs in the library's virtual environment, which needs nothing of ours installed: the scoring path is light.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from asympo.rewards.scorer import Scored, ScoreFailure, Scorer
from asympo.tasks.base import TaskPrompt
from asympo.tasks.config import TaskConfig

GROUP_SIZE = 4
NUM_GROUPS = 125
OVERLONG = {"max_completion_len": 64, "soft_punish_cache": 32}
FUNCTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "trl": (
        {"function": "trl.rewards:accuracy_reward"},
        {"function": "trl.rewards:think_format_reward"},
        {"function": "trl.rewards:get_soft_overlong_punishment", "options": OVERLONG},
    ),
    "verl": (
        {"function": "verl.utils.reward_score:default_compute_score"},
        {"function": "verl.utils.reward_score.gsm8k:compute_score", "name": "gsm8k"},
        {"function": "verl.utils.reward_score.math_reward:compute_score", "name": "math"},
    ),
}
ANSWERS = ("42", "-7", "1,234", "3.5", r"\frac{1}{2}", r"\sqrt{2}", r"12\%", "x^2+1", "(3,4]", "none of it")
GIVEN = ("0.5", r"\dfrac{1}{2}", " ", "四十二", r"\frac{")
FORMS = (r"\boxed{%s}", r"$\boxed{%s}$", "#### %s", "The answer is $%s$.", r"\fbox{%s}", "%s", "")
SOURCES = ("openai/gsm8k", "lighteval/MATH")
Group = tuple[TaskPrompt, list[str], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=FUNCTIONS)
    library = parser.parse_args().library
    # What libraries print is not the answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    groups = list(made_groups(random.Random(0)))
    versions = {"python": sys.version.split()[0], library: importlib.metadata.version(library)}
    compared = {
        str(reward.get("name") or reward["function"]): compare(library, reward, groups)
        for reward in FUNCTIONS[library]
    }
    json.dump({"libraries": versions, "functions": compared}, answers)
    answers.close()


def made_groups(draw: random.Random) -> Iterator[Group]:
    """Right, wrong, malformed, empty, overlong and foreign responses, the same ones at every call."""
    for number in range(NUM_GROUPS):
        answer, source = draw.choice(ANSWERS), draw.choice(SOURCES)
        texts = [response(answer, draw) for _ in range(GROUP_SIZE)]
        ids = [[draw.randrange(1000) for _ in range(draw.randrange(100))] for _ in texts]
        columns = {
            "solution": f"${answer}$" if answer != "none of it" else answer,
            "data_source": source,
            "reward_model": {"style": "rule", "ground_truth": answer},
            "extra_info": {"index": number},
        }
        messages = ({"role": "user", "content": "What is it?"},)
        yield TaskPrompt(index=number, messages=messages, answer=answer, columns=columns), texts, ids


def response(answer: str, draw: random.Random) -> str:
    given = draw.choice(
        (answer, answer, draw.choice(ANSWERS), "0.5", r"\dfrac{1}{2}", " ", "四十二", "\\frac{")
    )
    thought = draw.choice(
        ("", "Let me see.\n", "<think>\nso\n</think>\n", "<think>so", "</think><think>", r"First \boxed{1}. ")
    )
    end = draw.choice(("", "\n", " and so on" * draw.randrange(100), "\n\nProblem: what next? #### 3"))
    form = draw.choice(
        (r"\boxed{%s}", r"$\boxed{%s}$", "#### %s", "The answer is $%s$.", r"\fbox{%s}", "%s", "")
    )
    return thought + form.replace("%s", given) + end


def compare(library: str, reward: dict[str, Any], groups: Sequence[Group]) -> dict[str, Any]:
    """Every response by hand and through the scoring processes."""
    by_hand = [value for group in groups for value in (_trl if library == "trl" else _verl)(reward, group)]
    config = TaskConfig.model_validate({"rewards": [reward]})
    ours: list[float | str | None] = []
    columns = list(groups[0][0].columns)
    with Scorer(task=config, timeout_seconds=120.0, allow_python=True, columns=columns) as scorer:
        for prompt, texts, ids in groups:
            ours += [value_of(score) for score in scorer.score(prompt, texts, token_ids=ids)]
    pairs = list(zip(by_hand, ours, strict=True))
    return {
        "responses": len(pairs),
        "distinct_values": len({repr(hand) for hand, _ in pairs}),
        "different": [
            [place, hand, our] for place, (hand, our) in enumerate(pairs) if repr(hand) != repr(our)
        ],
    }


def value_of(score: Scored | ScoreFailure) -> float | str | None:
    """None where the function does not apply; another failure is told, and equal to nothing."""
    if isinstance(score, Scored):
        return score.reward
    return None if score.kind == "does_not_apply" else score.reason


def _trl(reward: dict[str, Any], group: Group) -> list[float | None]:
    prompt, texts, ids = group
    function = found(reward["function"])
    if "options" in reward:
        function = function(**reward["options"])
    return list(
        function(
            completions=[[{"role": "assistant", "content": text}] for text in texts],
            completion_ids=ids,
            solution=[prompt.columns["solution"]] * len(texts),
        )
    )


def _verl(reward: dict[str, Any], group: Group) -> list[float]:
    prompt, texts, _ = group
    asked = {"ground_truth": prompt.columns["reward_model"]["ground_truth"]}
    if "name" not in reward:
        asked |= {name: prompt.columns[name] for name in ("data_source", "extra_info")}
    results = [found(reward["function"])(solution_str=text, **asked) for text in texts]
    return [float(each["score"] if isinstance(each, dict) else each) for each in results]


def found(function: str) -> Callable[..., Any]:
    module, _, name = function.partition(":")
    value: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return value


if __name__ == "__main__":
    main()
