"""Experts whose weights are stacked in one parameter, with an adapter beside each, at the merged weights.

In files of most families every expert has matrices of its own, and so has the adapter there. In the model
they are parts of a stack, one matrix of an expert below the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from asympo.learner.model.adapted_linear import AdaptedWeight, as_published


@dataclass(frozen=True, kw_only=True)
class ExpertMatrix:
    """A tensor of a model's files, by where it is in the model."""

    parameter: str
    expert: int
    rows: slice
    """Of that expert in the stack."""

    def of(self, stack_EFD: Tensor) -> Tensor:
        """A view."""
        return stack_EFD[self.expert, self.rows]


def expert_matrices(model: PreTrainedModel) -> dict[str, ExpertMatrix]:
    """Matrices of files that are stacked in the model, by their name in files; of one without an adapter.

    Stacks that are written otherwise, whole or transposed, are not among them.
    """
    places = {}
    for parameter, stack in model.named_parameters():
        if stack.dim() != 3:
            continue
        num_experts, num_rows, _ = stack.shape
        # Two columns: what takes stacks apart drops a dimension of one.
        rows = _numbers(0, num_experts * num_rows).reshape(num_experts, num_rows, 2)
        written = revert_weight_conversion(model, {parameter: rows})
        places.update(_places(written, parameter=parameter, num_rows=num_rows))
    return places


class AdaptedStack(AdaptedWeight):
    """One stack, with its matrices as PEFT lays them out."""

    def __init__(self, *, matrices: Mapping[str, ExpertMatrix], **weight: Any) -> None:
        """`matrices`: what files call its parts; the others as of any weight."""
        super().__init__(**weight)
        self.files = matrices
        self._num_experts = len(self.base_weight())

    def matrices(self) -> tuple[Tensor, Tensor]:
        a, b = super().matrices()
        return self.stacked(a, is_a=True), self.stacked(b, is_a=False)

    def stacked(self, matrix: Tensor, *, is_a: bool) -> Tensor:
        """All A of a stack as [E, R, D], or all B as [E, F, R]: a view of what PEFT holds."""
        if is_a:
            return matrix.view(self._num_experts, -1, matrix.shape[1])
        return matrix.view(matrix.shape[0], -1, self._num_experts).permute(2, 0, 1)

    def weight(self) -> Tensor:
        """The merged weights, whose gradient is that of the matrices."""
        # torch declares no types for `apply`.
        merged_EFD: Tensor = _Merged.apply(*self.matrices(), self)  # type: ignore[no-untyped-call]
        return merged_EFD


class AdaptedExperts:
    """Forward of a module of experts: its own, at the merged weights of its stacks."""

    def __init__(self, stacks: list[AdaptedStack]) -> None:
        self._stacks = stacks
        self._experts = stacks[0].base

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # What an object holds under a parameter's name comes before the parameter.
        held = self._experts.__dict__
        try:
            held.update({stack.name: stack.weight() for stack in self._stacks})
            return self._experts(*args, **kwargs)
        finally:
            for stack in self._stacks:
                held.pop(stack.name, None)


class _Merged(torch.autograd.Function):
    """W0 + scale B A of every expert, rounded; with gradients of A and B."""

    @staticmethod
    def forward(ctx: Any, a_ERD: Tensor, b_EFR: Tensor, stack: AdaptedStack) -> Tensor:
        ctx.save_for_backward(a_ERD, b_EFR)
        ctx.scale = stack.scale
        # A tensor of its own for autograd, where the stack keeps what is merged.
        return stack.merged(a_ERD, b_EFR).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_EFD: Tensor) -> tuple[Tensor | None, ...]:
        a_ERD, b_EFR = ctx.saved_tensors
        dtype = grad_EFD.dtype
        grad_a_ERD = as_published(b_EFR, dtype).mT @ grad_EFD
        grad_b_EFR = grad_EFD @ as_published(a_ERD, dtype).mT
        scaled = (
            grad.to(of.dtype).mul_(ctx.scale) for grad, of in ((grad_a_ERD, a_ERD), (grad_b_EFR, b_EFR))
        )
        return *scaled, None


def _places(written: Mapping[str, Tensor], *, parameter: str, num_rows: int) -> dict[str, ExpertMatrix]:
    """By the numbers of the rows that are written to each tensor; none where one is no part of an expert."""
    places = {}
    for name, rows in written.items():
        first = int(rows.flatten()[0])
        expert, start = divmod(first, num_rows)
        part = slice(start, start + len(rows))
        is_part = part.stop <= num_rows and torch.equal(rows, _numbers(first, len(rows)))
        if not is_part or not name.endswith(".weight"):
            return {}
        places[name] = ExpertMatrix(parameter=parameter, expert=expert, rows=part)
    return places


def _numbers(first: int, num_rows: int) -> Tensor:
    return torch.arange(first, first + num_rows, device="cpu").reshape(-1, 1).repeat(1, 2)
