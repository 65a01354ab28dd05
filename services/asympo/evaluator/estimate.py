"""Numbers of an evaluation: means over prompts, pass@k without bias, intervals."""

import math
from collections.abc import Sequence

from asympo.common.rollout_log.evals.result import Estimate

_Z_95 = 1.959963984540054


def mean_over_prompts(values: Sequence[float]) -> Estimate:
    """Mean of one value a prompt; prompts are what varies, so that more samples of one prompt claim no more.

    Wilson's interval for values from 0 to 1, which is too wide rather than too narrow for values between
    them; the normal one for others.
    """
    if not values:
        return Estimate(value=0.0, low=0.0, high=1.0)
    mean = math.fsum(values) / len(values)
    if min(values) >= 0.0 and max(values) <= 1.0:
        low, high = wilson_interval(math.fsum(values), len(values))
        return Estimate(value=mean, low=low, high=high)
    variance = math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    half = _Z_95 * math.sqrt(variance / len(values))
    return Estimate(value=mean, low=mean - half, high=mean + half)


def wilson_interval(num_correct: float, num_total: int) -> tuple[float, float]:
    """The Wilson score interval at 95 %; (0, 1) when nothing was measured."""
    if num_total == 0:
        return 0.0, 1.0
    share, z2 = num_correct / num_total, _Z_95**2
    centre = (share + z2 / (2 * num_total)) / (1 + z2 / num_total)
    spread = (
        math.sqrt(share * (1 - share) / num_total + z2 / (4 * num_total**2)) * _Z_95 / (1 + z2 / num_total)
    )
    return max(0.0, centre - spread), min(1.0, centre + spread)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Chance that at least one of `k` responses is right, from `num_right` of `num_samples`, without bias.

    1 - C(n - c, k) / C(n, k), from Chen et al., Evaluating Large Language Models Trained on Code (2021).
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}: pass@k needs 1 to {num_samples}, the number of samples")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def pass_ks(num_samples: int) -> list[int]:
    """The k that are reported: powers of two, and the number of samples itself."""
    powers = [2**power for power in range(num_samples.bit_length()) if 2**power <= num_samples]
    return sorted({*powers, num_samples})
