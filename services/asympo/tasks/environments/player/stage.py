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
        """All of them in order: `prompt`, `answer`, and `held_out` for those of its own split for that."""

    def serving(self) -> AbstractAsyncContextManager[Any]:
        """What must be up while episodes are played."""

    async def play(self, row: int, seat: Seat, sampling: Mapping[str, Any]) -> Played:
        """One episode. Raises EpisodeFailed."""


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Those values that are numbers."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def reward_of(value: Any) -> float:
    """Raises EpisodeFailed for what is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise EpisodeFailed(f"its reward is {value!r}")
    return float(value)
