"""Times the generator's scoring path, its processes included, around functions that cost nothing."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asympo.bench.rewards import functions
from asympo.common.errors import AsympoError
from asympo.rewards.scorer import Scored, Scorer
from asympo.tasks.base import TaskPrompt
from asympo.tasks.config import TaskConfig

GROUP_SIZE = 8
RESPONSE_TOKENS = 512
NUM_JUDGE_CALLS = 256
_WARM_UP_GROUPS = 50
_TIMEOUT_SECONDS = 60.0


def measure_rewards(*, num_groups: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The whole report of `asympo bench rewards`."""
    say(f"{num_groups} groups of {GROUP_SIZE} responses of {RESPONSE_TOKENS} tokens, one after the other")
    overhead = _overhead_milliseconds(num_groups)
    say(f"{NUM_JUDGE_CALLS} calls of {functions.JUDGE_SECONDS:g} s each, all at once")
    return {
        "group_size": GROUP_SIZE,
        "response_tokens": RESPONSE_TOKENS,
        "groups": num_groups,
        # The median: what neighbours on the machine take would move a mean.
        "overhead_milliseconds_per_group": statistics.median(overhead),
        "overhead_milliseconds_mean": statistics.mean(overhead),
        "overhead_milliseconds_longest": max(overhead),
        "judge_seconds_256": _judge_seconds(),
    }


def _overhead_milliseconds(num_groups: int) -> list[float]:
    """Of each group, what the function takes when called by hand subtracted."""
    texts = [f"{number} " + "words " * RESPONSE_TOKENS for number in range(GROUP_SIZE)]
    token_ids = [[20_000 + place for place in range(RESPONSE_TOKENS)]] * GROUP_SIZE
    right = functions.length(texts)
    began = time.perf_counter()
    functions.length(texts)
    own_seconds = time.perf_counter() - began
    spent = []
    with _scorer("length") as scorer:
        for number in range(_WARM_UP_GROUPS + num_groups):
            prompt = _prompt(number)
            began = time.perf_counter()
            scores = scorer.score(prompt, texts, token_ids=token_ids)
            spent.append((time.perf_counter() - began - own_seconds) * 1000)
            _check([each.reward if isinstance(each, Scored) else None for each in scores], right)
    return spent[_WARM_UP_GROUPS:]


def _judge_seconds() -> float:
    """From the first call to the last answer; groups are asked for by as many threads, as generators do."""
    num_groups = NUM_JUDGE_CALLS // GROUP_SIZE
    with _scorer("judge") as scorer, ThreadPoolExecutor(num_groups) as threads:
        began = time.perf_counter()
        groups = list(
            threads.map(lambda number: scorer.score(_prompt(number), ["a"] * GROUP_SIZE), range(num_groups))
        )
        seconds = time.perf_counter() - began
    for scores in groups:
        _check([each.reward if isinstance(each, Scored) else None for each in scores], [1.0] * GROUP_SIZE)
    return seconds


def _scorer(name: str) -> Scorer:
    rewards = [{"function": f"{functions.__name__}:{name}"}]
    return Scorer(
        task=TaskConfig.model_validate({"rewards": rewards}),
        timeout_seconds=_TIMEOUT_SECONDS,
        allow_python=True,
        columns=["question", "answer"],
    )


def _prompt(number: int) -> TaskPrompt:
    question = f"What is {number} and {number}? " + "Think about it. " * 20
    columns = {"question": question, "answer": str(2 * number)}
    return TaskPrompt(index=number, text=question, answer=str(2 * number), columns=columns)


def _check(given: list[float | None], right: list[float]) -> None:
    if given != right:
        raise AsympoError(f"scoring gave {given} where the function gives {right}")
