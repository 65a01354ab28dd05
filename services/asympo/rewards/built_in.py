"""Reward functions of ours: compared with the answer, by form, by length, or asked of a server."""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asympo.common.errors import BadSetting
from asympo.common.settings import problem_of
from asympo.rewards import scoring
from asympo.rewards.code import CodeOptions, CodeReward
from asympo.rewards.conventions.base import Asked, FunctionOutcome, Notes, outcome_of, plain_extra
from asympo.rewards.http import HttpOptions, http_reward
from asympo.tasks.reward_config import RewardConfig

Made = Callable[[Asked], Any]
"""Returns a number, or a dict with `reward` and extras; or something to await that gives one."""


class BuiltIn:
    """The convention of our own functions."""

    takes_group = False

    def __init__(self, *, wants_token_ids: bool) -> None:
        self.wants_token_ids = wants_token_ids

    def arguments(self, asked: Asked, notes: Notes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (asked,), {}

    def read(self, result: Any, asked: Asked, notes: Notes) -> list[FunctionOutcome]:
        if isinstance(result, dict):
            extras = {name: plain_extra(value) for name, value in result.items() if name != "reward"}
            return [outcome_of(result.get("reward"), extras=extras)]
        return [outcome_of(result, may_be_none=True)]

    def provided(self, columns: Sequence[str]) -> set[str] | None:
        return None


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NoOptions(_Options):
    """Takes none."""


class RegexOptions(_Options):
    """What extracts the answer."""

    pattern: str


class FormatOptions(_Options):
    """What a response has to look like as a whole."""

    pattern: str = r"\A\s*<think>.*?</think>.*\Z"


class LengthOptions(_Options):
    """Where the penalty begins and where it is full, in characters, or in tokens if they are known."""

    free: int = Field(ge=0)
    limit: int = Field(gt=0)
    unit: str = Field("tokens", pattern="^(tokens|characters)$")


class OverlongOptions(_Options):
    """As DAPO's soft punishment: 0 up to max_tokens less margin, then down to -1 at max_tokens."""

    max_tokens: int = Field(gt=0)
    margin: int = Field(gt=0)


class GymOptions(_Options):
    """The data set whose scorer is used if the row names none."""

    dataset: str | None = None


def make_built_in(config: RewardConfig, *, columns: Sequence[str] | None = None) -> Made:
    """The function of this name with its options, for rows with these columns. Raises BadSetting."""
    kinds: dict[str, tuple[type[BaseModel], Callable[[Any], Made]]] = {
        "exact": (NoOptions, lambda _: _of_answer(scoring.exact_match)),
        "regex": (RegexOptions, lambda options: _of_answer(scoring.regex_match(options.pattern))),
        "math-verify": (NoOptions, lambda _: _of_answer(scoring.math_verify_match())),
        "reasoning-gym": (GymOptions, _reasoning_gym),
        "length": (LengthOptions, _length),
        "format": (FormatOptions, _format),
        "overlong": (OverlongOptions, _overlong),
        "code": (CodeOptions, lambda options: CodeReward(options, columns)),
        "http": (HttpOptions, lambda options: http_reward(options)),
    }
    model, make = kinds[config.function]
    try:
        options = model(**config.options)
    except ValidationError as error:
        raise BadSetting(
            f"reward {config.function} has options {config.options}: {problem_of(error)}; "
            f"it takes {', '.join(model.model_fields) or 'none'}"
        ) from error
    return make(options)


def _of_answer(score: scoring.Score) -> Made:
    """Does not apply to a row without an answer: another function may score it."""
    return lambda asked: score(asked.prompt, asked.texts[0]) if asked.prompt.answer.strip() else None


def _length_of(asked: Asked, unit: str) -> int:
    if unit == "characters":
        return len(asked.texts[0]) - len(asked.prompt.prefill)
    if not asked.token_ids:
        raise ValueError("the token ids of the response are not known: set unit to characters")
    return len(asked.token_ids[0])


def _length(options: LengthOptions) -> Made:
    if options.limit <= options.free:
        raise BadSetting(
            f"reward length has free {options.free} and limit {options.limit}: give a limit above free"
        )

    def score(asked: Asked) -> float:
        over = (_length_of(asked, options.unit) - options.free) / (options.limit - options.free)
        return -min(1.0, max(0.0, over))

    return score


def _overlong(options: OverlongOptions) -> Made:
    if options.margin > options.max_tokens:
        raise BadSetting(
            f"reward overlong has margin {options.margin}, more than max_tokens {options.max_tokens}"
        )
    return _length(
        LengthOptions(free=options.max_tokens - options.margin, limit=options.max_tokens, unit="tokens")
    )


def _format(options: FormatOptions) -> Made:
    pattern = scoring.compile_pattern(options.pattern)
    return lambda asked: float(pattern.search(asked.texts[0]) is not None)


def _reasoning_gym(options: GymOptions) -> Made:
    """Scores by the row's `metadata`, as the library's own data sets keep it."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise BadSetting("reward reasoning-gym needs the library: pip install 'asympo[tasks]'") from error

    def score(asked: Asked) -> float:
        entry = dict(asked.columns)
        metadata = entry.get("metadata") or {}
        name = options.dataset or metadata.get("source_dataset") or ""
        given = reasoning_gym.utils.extract_answer(asked.texts[0])
        return float(
            reasoning_gym.get_score_answer_fn(name)(asked.texts[0].strip() if given is None else given, entry)
        )

    return score
