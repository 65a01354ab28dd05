"""Gradients are taken at the weights that generators serve: the optimizer's, rounded as publishing does."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from asympo.learner.model.policy import Policy

_CHUNK = 1 << 18
"""Values at a time: they stay in a core's cache meanwhile."""


class PublishedValues:
    """Puts bfloat16 values in the place of the finer weights while a gradient is computed.

    At reinforcement learning's rates most of an update is less than half the distance between two bfloat16
    numbers, and no generator sees it before enough has added up. A gradient at the finer weights would
    improve a policy that nobody samples from. What is rounded off is kept meanwhile, 2 bytes a value.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._rests: list[Tensor] = []

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For the time of forward and backward passes; then the weights are what they were, bit for bit."""
        weights = [_local(parameter) for parameter in _not_rounded_anyway(self._policy)]
        if not self._rests:
            self._rests = [torch.empty_like(w, dtype=torch.int16) for w in weights]
        for value, rest in _chunks(weights, self._rests):
            rest.copy_(value.view(torch.int32))  # the lower half of the bits
            # Halves go up; publishing takes the even neighbour, for one of 130,000 values another one.
            value.view(torch.int32).add_(0x8000).bitwise_and_(-0x10000)
        try:
            yield
        finally:
            for value, rest in _chunks(weights, self._rests):
                value.view(torch.int32).add_(rest)


def _not_rounded_anyway(policy: Policy) -> Iterator[nn.Parameter]:
    """Trained float32 weights; in mixed precision only those that are no factors of matrix products."""
    matrices = {id(m.weight) for m in policy.model.modules() if isinstance(m, nn.Linear)}
    looked_up = {id(m.weight) for m in policy.model.modules() if isinstance(m, nn.Embedding)}
    is_mixed = policy.compute_dtype.itemsize < policy.parameter_dtype.itemsize
    for parameter in policy.model.parameters():
        is_rounded = is_mixed and (parameter.dim() > 2 or id(parameter) in matrices - looked_up)
        if parameter.requires_grad and parameter.dtype == torch.float32 and not is_rounded:
            yield parameter


def _local(parameter: nn.Parameter) -> Tensor:
    data = parameter.detach()
    return data.to_local() if isinstance(data, DTensor) else data


def _chunks(weights: list[Tensor], rests: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for weight, rest in zip(weights, rests, strict=True):
        if weight.is_contiguous():
            yield from zip(weight.view(-1).split(_CHUNK), rest.view(-1).split(_CHUNK), strict=True)
        else:
            yield weight, rest
