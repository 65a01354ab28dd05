"""Group-relative advantages, in double precision and without torch."""

import math
from collections.abc import Sequence


def group_advantages(rewards: Sequence[float]) -> tuple[float, ...]:
    """A_i = r_i - mean(r) of one whole group, no division by the standard deviation.

    Equal rewards give exact zeros, which subtraction of a rounded mean would not.
    """
    if not has_signal(rewards):
        return (0.0,) * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return tuple(reward - mean for reward in rewards)


def has_signal(rewards: Sequence[float]) -> bool:
    """True when a group can be trained on: at least two responses, whose rewards are not all equal."""
    return len(rewards) >= 2 and min(rewards) != max(rewards)
