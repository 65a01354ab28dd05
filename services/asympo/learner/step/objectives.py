"""Training objectives: pure functions of mean NLL and advantage, chosen by name.

Shape legend: `_R` one element per response of a micro-batch.

Every objective returns the sum of its per-response terms divided by `scope.num_responses`, the number of
responses of the *whole* step (those of groups without signal included), so the micro-batches of a step add
up to the step's loss. Minimising it raises the probability of responses with a positive advantage. All
arithmetic is float32 (float64 inputs stay float64, for exactness tests).

A response whose history was rewritten on the way is several sequences. It has one reward and one mean NLL,
over all trained tokens of all its sequences, and is one element of `_R` like any other: the objectives are
unchanged, and so is the sum of zero, which a mean for each sequence would break.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MEAN_NLL_FLOOR = 1e-4
"""Guards 0/0 and rounding only; floors from 1e-8 to 1e-2 train equally well, larger ones lose stability."""


@dataclass(frozen=True, kw_only=True)
class StepScope:
    """What an objective must know about the step a micro-batch belongs to."""

    num_responses: int
    """Responses of all valid groups of the step, the divisor of the loss."""
    num_groups: int
    """B: valid groups of the step."""
    num_groups_without_signal: int
    """M: those of B whose rewards are all equal."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """Constants of the objectives; each reads only its own."""

    mean_nll_floor: float = MEAN_NLL_FLOOR
    """asympo: lower clamp of the normaliser."""
    negative_scale: float = 0.3
    """spo: factor c in (0, 1] on responses with a negative advantage."""


ObjectiveResult = tuple[Tensor, dict[str, Tensor]]
Objective = Callable[[Tensor, Tensor, StepScope, ObjectiveOptions], ObjectiveResult]


def asympo(
    mean_nll_R: Tensor, advantage_R: Tensor, scope: StepScope, options: ObjectiveOptions
) -> ObjectiveResult:
    """A_i * m_i / sg(max(m_i, floor)): the asymmetric objective (arXiv 2606.03070).

    The value of a term is A_i exactly while m_i >= floor, so a group's terms sum to zero; its gradient is
    A_i * grad log m_i. At a token's logits that is (A/S)(pi - e), S the response's summed NLL, whose L1 norm
    over the response never exceeds 2|A|.

    Degenerate cases: m_i < floor (a response the policy is certain of) has value A_i * m_i / floor and a
    gradient bounded by |A_i| / floor * |grad m_i|, which vanishes with m_i; A_i = 0 contributes nothing.
    """
    mean_nll_R, advantage_R = _checked(mean_nll_R, advantage_R)
    normaliser_R = mean_nll_R.detach().clamp(min=options.mean_nll_floor)
    # The quotient first: m/m is exactly 1, A*m/m need not be exactly A.
    term_R = advantage_R * (mean_nll_R / normaliser_R)
    num_floored = (mean_nll_R.detach() < options.mean_nll_floor).sum()
    return term_R.sum() / scope.num_responses, {"num_floored": num_floored}


def spo(
    mean_nll_R: Tensor, advantage_R: Tensor, scope: StepScope, options: ObjectiveOptions
) -> ObjectiveResult:
    """A_i * m_i for A_i > 0, else c * A_i * m_i: a fixed scale on negative responses (arXiv 2606.03070).

    c = 0.3 is our choice; the paper's constant is not known to us. c = 1 is `naive`.
    """
    mean_nll_R, advantage_R = _checked(mean_nll_R, advantage_R)
    scale_R = torch.where(advantage_R > 0, 1.0, options.negative_scale).to(mean_nll_R.dtype)
    return (scale_R * advantage_R * mean_nll_R).sum() / scope.num_responses, {}


def naive(
    mean_nll_R: Tensor, advantage_R: Tensor, scope: StepScope, options: ObjectiveOptions
) -> ObjectiveResult:
    """A_i * m_i: the policy gradient without normalisation, where the paper starts (arXiv 2606.03070).

    Stale negative responses have a large m_i and dominate the step: kept as the arm that fails.
    """
    mean_nll_R, advantage_R = _checked(mean_nll_R, advantage_R)
    return (advantage_R * mean_nll_R).sum() / scope.num_responses, {}


def gpg(
    mean_nll_R: Tensor, advantage_R: Tensor, scope: StepScope, options: ObjectiveOptions
) -> ObjectiveResult:
    """A_i * m_i * B / (B - M): group policy gradient with its correction for groups without signal.

    After GPG (arXiv 2504.02546), without division by the group's standard deviation. With M = B there is
    nothing to train: the loss is zero.
    """
    mean_nll_R, advantage_R = _checked(mean_nll_R, advantage_R)
    num_with_signal = scope.num_groups - scope.num_groups_without_signal
    scale = scope.num_groups / num_with_signal if num_with_signal else 0.0
    return scale * (advantage_R * mean_nll_R).sum() / scope.num_responses, {}


OBJECTIVES: dict[str, Objective] = {"asympo": asympo, "spo": spo, "naive": naive, "gpg": gpg}


def _checked(mean_nll_R: Tensor, advantage_R: Tensor) -> tuple[Tensor, Tensor]:
    if mean_nll_R.shape != advantage_R.shape or mean_nll_R.dim() != 1:
        raise ValueError(
            f"mean_nll {tuple(mean_nll_R.shape)} and advantage {tuple(advantage_R.shape)} differ"
        )
    dtype = torch.promote_types(mean_nll_R.dtype, torch.float32)
    return mean_nll_R.to(dtype), advantage_R.to(dtype)
