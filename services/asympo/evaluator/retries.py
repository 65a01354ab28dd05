"""When an evaluation that could not be done is tried again: with the next policy, or after a while."""

import time
from collections.abc import Callable

_FIRST_SECONDS, _MAX_SECONDS = 60.0, 3600.0


class Retries:
    """Waits that double while an evaluation of one policy goes on failing."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[str, tuple[str, float, float]] = {}
        """Of each evaluation that failed last: the policy, how long it waits, and until when."""

    def failed(self, name: str, policy_name: str) -> float:
        """It could not be done; seconds until it is tried again with this policy."""
        policy_before, before_seconds, _ = self._waiting.get(name, ("", 0.0, 0.0))
        seconds = _FIRST_SECONDS
        if policy_before == policy_name:
            seconds = min(2 * before_seconds, _MAX_SECONDS)
        self._waiting[name] = (policy_name, seconds, self._clock() + seconds)
        return seconds

    def is_too_early(self, name: str, policy_name: str) -> bool:
        """Whether it failed with this policy just now."""
        policy_before, _, until = self._waiting.get(name, ("", 0.0, 0.0))
        return policy_before == policy_name and self._clock() < until
