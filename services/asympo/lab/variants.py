"""Objectives that exist only here: behaviour-corrected arms, and variants that might be better.

Shape legend: `_R` responses of a micro-batch, `_N` trained tokens. Signatures are the product's; what a
variant shares with an objective of the product, it takes from there.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from asympo.learner.model.batching import PackedBatch
from asympo.learner.model.policy import Policy, ResponseNll
from asympo.learner.step.objectives import Objective, ObjectiveOptions, ObjectiveResult, StepScope

TokenIds = tuple[int, ...]
Scale = Callable[[Tensor], Tensor]
"""From detached mean NLL to the factor on A * m."""


def plain(mean_nll_R: Tensor) -> Tensor:
    """1: what `naive` does."""
    return torch.ones_like(mean_nll_R)


def normalised(floor: float = 1e-4) -> Scale:
    """1 / max(m, floor): what `asympo` does."""
    return lambda mean_nll_R: 1.0 / mean_nll_R.clamp(min=floor)


def fixed(scale: float) -> Scale:
    """A constant: what `spo` does to negatives."""
    return lambda mean_nll_R: torch.full_like(mean_nll_R, scale)


def bounded(bound: float, floor: float = 1e-4) -> Scale:
    """Normalised, and zero where the response is unlikelier than `bound` nats a token already."""
    return lambda mean_nll_R: (mean_nll_R <= bound) / mean_nll_R.clamp(min=floor)


def fading(rate: float = 1.0) -> Scale:
    """exp(-rate * m): what is already improbable is pushed down no further, exponentially so."""
    return lambda mean_nll_R: torch.exp(-rate * mean_nll_R)


def two_sided(*, positive: Scale, negative: Scale) -> Objective:
    """A_i * m_i * scale(sg(m_i)), with a scale of its own for each sign of the advantage."""

    def objective(
        mean_nll_R: Tensor, advantage_R: Tensor, scope: StepScope, options: ObjectiveOptions
    ) -> ObjectiveResult:
        detached_R = mean_nll_R.detach()
        scale_R = torch.where(advantage_R > 0, positive(detached_R), negative(detached_R))
        return (advantage_R * scale_R * mean_nll_R).sum() / scope.num_responses, {}

    return objective


class TokenLosses(Policy):
    """The policy, and losses that need the single tokens of its last forward pass.

    The product's step asks it for mean NLLs as ever, so packing, attention, clipping and update stay the
    product's; the objective then finds the tokens here.
    """

    def __init__(self, *, model: PreTrainedModel, compute_dtype: torch.dtype) -> None:
        super().__init__(model=model, compute_dtype=compute_dtype)
        self.behaviour: Mapping[tuple[TokenIds, TokenIds], tuple[float, ...]] = {}
        """Log-prob of each token of (prompt, response) under the policy that drew it."""
        self._nll_N = torch.empty(0)
        self._batch: PackedBatch | None = None

    def response_nll(self, batch: PackedBatch) -> ResponseNll:
        """As ever, from NLLs of single tokens."""
        num_tokens = batch.num_trained_tokens
        single = replace(batch, response_N=np.arange(num_tokens), num_trained_R=[1] * num_tokens)
        nll = super().response_nll(single)
        self._nll_N, self._batch = nll.mean_nll_R, batch
        num_R = torch.tensor(batch.num_trained_R, dtype=self._nll_N.dtype, device=self._nll_N.device)
        sum_R = torch.zeros_like(num_R).index_add(0, self._response_N(batch), self._nll_N)
        return replace(nll, mean_nll_R=sum_R / num_R)

    def clipped_ratio(self, clip: float) -> Objective:
        """Response mean of -min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A): `grpo`."""

        def objective(
            mean_nll_R: Tensor, advantage_R: Tensor, scope: StepScope, options: ObjectiveOptions
        ) -> ObjectiveResult:
            ratio_N, advantage_N, weight_N = self._tokens(advantage_R)
            clipped_N = ratio_N.clamp(1 - clip, 1 + clip)
            term_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
            return -(weight_N * term_N).sum() / scope.num_responses, {}

        return objective

    def truncated_weights(self, cap: float) -> Objective:
        """Response mean of sg(min(ratio, cap)) * A * NLL: truncated importance sampling."""

        def objective(
            mean_nll_R: Tensor, advantage_R: Tensor, scope: StepScope, options: ObjectiveOptions
        ) -> ObjectiveResult:
            ratio_N, advantage_N, weight_N = self._tokens(advantage_R)
            kept_N = ratio_N.detach().clamp(max=cap)
            return (weight_N * kept_N * advantage_N * self._nll_N).sum() / scope.num_responses, {}

        return objective

    def token_sum(self, *, kind: Literal["naive", "asympo"], length: float) -> Objective:
        """Sums over tokens instead of response means, in units of `length` tokens.

        `asympo` then divides by the mean NLL all the same: values are A_i * T_i / length, and a group's no
        longer sum to zero.
        """

        def objective(
            mean_nll_R: Tensor, advantage_R: Tensor, scope: StepScope, options: ObjectiveOptions
        ) -> ObjectiveResult:
            assert self._batch is not None
            num_R = torch.tensor(self._batch.num_trained_R, dtype=mean_nll_R.dtype, device=mean_nll_R.device)
            normaliser_R = mean_nll_R.detach().clamp(min=options.mean_nll_floor) if kind == "asympo" else 1.0
            term_R = advantage_R * num_R / length * mean_nll_R / normaliser_R
            return term_R.sum() / scope.num_responses, {}

        return objective

    def _tokens(self, advantage_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ratio to the behaviour policy, advantage, and 1 / T of each trained token."""
        batch = self._batch
        assert batch is not None
        behaviour = [self.behaviour[sequence] for sequence in batch.sequences_R]
        prompt_R = [len(prompt) for prompt, _ in batch.sequences_R]
        behaviour_N = []
        for row, response in zip(batch.row_N, batch.response_N, strict=True):
            # The token after the one that predicts it, counted from the first of the response.
            position = batch.position_ids_T[batch.source_U[row]] + 1 - prompt_R[response]
            behaviour_N.append(behaviour[response][position])
        old_N = torch.tensor(behaviour_N, dtype=self._nll_N.dtype, device=self._nll_N.device)
        response_N = self._response_N(batch)
        num_R = torch.tensor(batch.num_trained_R, dtype=self._nll_N.dtype, device=self._nll_N.device)
        # Log-ratios beyond 20 are numerically infinite and would only make inf * 0.
        ratio_N = torch.exp((-self._nll_N - old_N).clamp(max=20.0))
        return ratio_N, advantage_R.to(ratio_N.dtype)[response_N], (1.0 / num_R)[response_N]

    def _response_N(self, batch: PackedBatch) -> Tensor:
        return torch.tensor(batch.response_N, device=self._nll_N.device)
