"""How old the policy is that a step's responses are drawn from, in optimizer steps."""

import math
import random
from typing import Literal

Staleness = Literal["fixed", "uniform", "long-tailed"]
_LONG_TAIL_SIGMA = 1.2
_LONG_TAIL_LIMIT = 4


def draw_age(rng: random.Random, *, kind: Staleness, mean: int) -> int:
    """Age of one step's rollouts: `mean` itself, uniform on 0..2*mean, or log-normal with that mean.

    The long tail is cut at 4 * mean, which lowers its mean by a sixth.
    """
    if mean == 0 or kind == "fixed":
        return mean
    if kind == "uniform":
        return rng.randint(0, 2 * mean)
    mu = math.log(mean) - _LONG_TAIL_SIGMA**2 / 2
    return min(_LONG_TAIL_LIMIT * mean, round(rng.lognormvariate(mu, _LONG_TAIL_SIGMA)))


def oldest_age(*, kind: Staleness, mean: int) -> int:
    """Snapshots that must be kept beside the current one."""
    return {"fixed": 1, "uniform": 2, "long-tailed": _LONG_TAIL_LIMIT}[kind] * mean
