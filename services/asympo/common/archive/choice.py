"""Which groups a reader asks for."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from asympo.common.errors import BadSetting

_STEPS = re.compile(r"(?a:(\d{1,12})(-(\d{1,12})?)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What is not given leaves nothing out."""

    first_step: int | None = None
    """Trained at this step or later."""
    last_step: int | None = None
    """Trained at this step or earlier."""
    function: str = ""
    """Reward function whose value the limits are for; empty: the reward."""
    at_least: float | None = None
    """Of one response of the group."""
    at_most: float | None = None
    """Of the same response."""
    prompt: str = ""
    """Text within the prompt, in capitals or not."""

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self == Choice()

    def takes_step(self, step: int | None) -> bool:
        """Whether groups of that step are wanted; None is not trained yet."""
        if self.first_step is None and self.last_step is None:
            return True
        return (
            step is not None
            and (self.first_step is None or step >= self.first_step)
            and (self.last_step is None or step <= self.last_step)
        )

    def takes(self, *, step: int | None, prompt: str, responses: Iterable[Mapping[str, Any]]) -> bool:
        """Whether this group is wanted; responses have `reward` and `functions`."""
        if not self.takes_step(step) or self.prompt.casefold() not in prompt.casefold():
            return False
        is_any = not self.function and self.at_least is None and self.at_most is None
        return is_any or any(self._takes_value(each) for each in responses)

    def _takes_value(self, response: Mapping[str, Any]) -> bool:
        value = (
            (response.get("functions") or {}).get(self.function) if self.function else response.get("reward")
        )
        return (
            value is not None
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
        )


def parse_steps(given: str) -> tuple[int, int | None]:
    """First and last of `12`, `10-20` or `10-`. Raises BadSetting."""
    match = _STEPS.fullmatch(given)
    if match is None:
        raise BadSetting(f"steps {given!r} are neither a number nor a range: give 12, 10-20, or 10-")
    first = int(match[1])
    last = int(match[3]) if match[3] else None if match[2] else first
    if last is not None and last < first:
        raise BadSetting(f"steps {given} end before they begin: give {last}-{first}")
    return first, last
