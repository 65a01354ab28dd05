"""What every kind of environment is made to look like."""

import math
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

MODEL = "policy"
"""What the model is called where it is asked."""
KEY_VARIABLE = "ASYMPO_TOKEN"
"""Environment variable with the token for whom the player asks; sessions need none."""
GIVEN = "given"
"""Where a row keeps the line of the user's file that it was made of, if it was."""


class EpisodeFailed(Exception):
    """An episode without a reward; its session is left out."""


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Where one episode asks the policy."""

    base_url: str
    """For this episode alone."""
    shared_url: str
    """For all of them, told apart by the header `x-session-id`."""
    session_id: str = ""
    """Of the gateway; empty where a door is asked without one."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """What an episode earned."""

    reward: float
    functions: Mapping[str, float] = field(default_factory=dict)
    """The rubric's parts by name."""
    text: str = ""
    """The last answer, for people."""


class StagedPlay(Protocol):
    """An environment whose rows are numbered."""

    def rows(self) -> list[dict[str, Any]]:
        """All in order: `prompt`, `answer`, `held_out` for those of its own split for that, and GIVEN."""

    def serving(self) -> AbstractAsyncContextManager[Any]:
        """What must be up while episodes are played."""

    async def play(self, row: int, seat: Seat, sampling: Mapping[str, Any]) -> Played:
        """One episode. Raises EpisodeFailed."""


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Those values that are numbers."""
    return {name: number for name, value in values.items() if (number := _number(value)) is not None}


def given_of(row: dict[str, Any]) -> dict[str, Any]:
    """What the environment is given of a written row: one of an earlier version is all of it."""
    given = row.get(GIVEN)
    if isinstance(given, dict) and row.keys() <= {"prompt", "answer", "held_out", GIVEN}:
        return given
    return row


def reward_of(value: Any) -> float:
    """Raises EpisodeFailed for what is none."""
    number = _number(value)
    if number is None:
        raise EpisodeFailed(f"its reward is {value!r}, which is no finite number")
    return number


def _number(value: Any) -> float | None:
    """As of a reward function: bools and scalars of numpy and torch are; texts, lists and NaN are not."""
    if isinstance(value, str | bytes) or tuple(getattr(value, "shape", ())) != ():
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
