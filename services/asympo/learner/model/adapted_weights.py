"""Weights with an adapter beside them, computed at what both are merged to: linears, and stacks of experts.

PEFT's own forward computes another policy than the merged one that is served, and passes over every
activation several times more.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from asympo.learner.model.adaptable import WeightPart
from asympo.learner.model.weights import PUBLISHED_DTYPE

if TYPE_CHECKING:
    from asympo.learner.model.quantised_base import QuantisedWeight


class AdaptedWeight:
    """A weight and the two matrices beside it, merged into the one that generators serve.

    Most of what an adapter adds is less than the distance between two bfloat16 numbers. A gradient at the sum
    before it is rounded would improve a policy that nobody samples from.
    """

    def __init__(
        self,
        *,
        base: Any,
        name: str = "weight",
        files: Mapping[str, WeightPart],
        quantised: "QuantisedWeight | None" = None,
        a: nn.Module,
        b: nn.Module,
        scale: float,
        compute_dtype: torch.dtype,
    ) -> None:
        """`base`: the module that has the weight; `a`, `b`: what holds the matrices beside it, as `weight`.

        `name`: of the weight in the module; `files`: what its parts are called in files.
        `quantised`: the weight in fewer bits, which from now on is held instead.
        """
        self.base, self.name, self.files = base, name, files
        self.quantised = quantised
        if quantised is not None:
            # Its shape says how many operations a step needs.
            held = torch.empty_like(self.base_weight(), device="meta")
            setattr(base, name, nn.Parameter(held, requires_grad=False))
        self.a, self.b = a, b
        self.scale = scale
        self.compute_dtype = compute_dtype
        self._keeps_merged = quantised is None
        self._merged: Tensor | None = None
        self._merged_of: tuple[Tensor, Tensor] | None = None
        """The matrices that were merged last. Held, so that no others can lie where they lie."""
        self._merged_at = (-1, -1)

    def base_weight(self) -> Tensor:
        """What the matrices are added to, where it is held in all its bits."""
        return cast(Tensor, getattr(self.base, self.name)).detach()

    def merge_anew(self) -> None:
        """From now on nothing that is merged is kept: less memory, more arithmetic."""
        self._keeps_merged = False
        self._merged = self._merged_of = None

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A and B, as `laid_out` has them."""
        return self.laid_out(cast(Tensor, self.a.weight), cast(Tensor, self.b.weight))

    def laid_out(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """What PEFT holds as [R, D] and [F, R]; of a stack [E, R, D] and [E, F, R]; views."""
        return a, b

    def merged(self, a_RD: Tensor, b_FR: Tensor) -> Tensor:
        """The weight with the adapter, rounded; of these matrices."""
        of = (a_RD.detach(), b_FR.detach())
        if not self._keeps_merged:
            return self._merge(*of).to(self.compute_dtype)
        # Whoever changes a parameter in place counts its version up; for the optimizer `guarded_step` does.
        # Probes are scored with others in their place, whose versions begin anew.
        version = (a_RD._version, b_FR._version)
        if self._merged is None:
            # Whoever scores a probe widens the base for a while.
            self._merged = torch.empty_like(self.base_weight(), dtype=PUBLISHED_DTYPE)
        if self._merged_at != version or not _are_same(self._merged_of, of):
            self._merged.copy_(self._merge(*of))
            self._merged_at, self._merged_of = version, of
        return self._merged.to(self.compute_dtype)

    def _merge(self, a_RD: Tensor, b_FR: Tensor) -> Tensor:
        """As `common/checkpoints/merge.py` does, up to the order of a sum before it is rounded."""
        wide = torch.promote_types(PUBLISHED_DTYPE, torch.float32)
        # In a forward pass autocast would round the product's factors and the product itself.
        with torch.autocast(a_RD.device.type, enabled=False):
            product_FD = as_published(b_FR, wide).mul_(self.scale) @ as_published(a_RD, wide)
        product_FD += self.base_weight() if self.quantised is None else self.quantised.values()
        return product_FD.to(PUBLISHED_DTYPE)


class AdaptedLinear(AdaptedWeight):
    """Forward and gradient of one of PEFT's layers."""

    def __call__(self, x: Tensor) -> Tensor:
        # torch declares no types for `apply`.
        output: Tensor = _Product.apply(x, self.base.bias, *self.matrices(), self)  # type: ignore[no-untyped-call]
        return output

    def product(self, x_TD: Tensor, a_RD: Tensor, b_FR: Tensor) -> Tensor:
        """x W' without bias, in the precision of products."""
        merged_FD = self.merged(a_RD, b_FR)
        return x_TD.to(merged_FD.dtype) @ merged_FD.T

    def gradients(
        self, x_TD: Tensor, grad_TF: Tensor, a_RD: Tensor, b_FR: Tensor, *, needs_x: bool = True
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Of x, A and B."""
        grad_TF = grad_TF.to(x_TD.dtype)
        inner_TR = x_TD @ as_published(a_RD, x_TD.dtype).T
        grad_inner_TR = grad_TF @ as_published(b_FR, x_TD.dtype)
        grad_a_RD = (grad_inner_TR.T @ x_TD).to(a_RD.dtype).mul_(self.scale)
        grad_b_FR = (grad_TF.T @ inner_TR).to(b_FR.dtype).mul_(self.scale)
        return grad_TF @ self.merged(a_RD, b_FR) if needs_x else None, grad_a_RD, grad_b_FR


class AdaptedStack(AdaptedWeight):
    """A stack of experts."""

    def __init__(self, **weight: Any) -> None:
        super().__init__(**weight)
        self._num_experts = len(self.base_weight())

    def laid_out(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a_ERD = a.view(self._num_experts, -1, a.shape[1])
        return a_ERD, b.view(b.shape[0], -1, self._num_experts).permute(2, 0, 1)

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


class _Product(torch.autograd.Function):
    """x W' + bias, where W = W0 + scale B A is merged; with gradients of x, A and B alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias_F: Tensor | None, a_RD: Tensor, b_FR: Tensor, layer: AdaptedLinear
    ) -> Tensor:
        merged_FD = layer.merged(a_RD, b_FR)
        x_TD = x.reshape(-1, x.shape[-1]).to(merged_FD.dtype)
        bias_F = None if bias_F is None else bias_F.to(merged_FD.dtype)
        output_TF = nn.functional.linear(x_TD, merged_FD, bias_F)
        # Not what is merged: kept, it is the layer's own, and otherwise it would be kept until the backward.
        ctx.save_for_backward(x_TD, a_RD, b_FR)
        ctx.layer, ctx.x_dtype = layer, x.dtype
        # Not as a view: some layers add to it in place.
        output: Tensor = torch.ops.aten._unsafe_view(output_TF, (*x.shape[:-1], output_TF.shape[-1]))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, a_RD, b_FR = ctx.saved_tensors
        grad_TF = grad.reshape(-1, grad.shape[-1])
        grad_x, grad_a_RD, grad_b_FR = ctx.layer.gradients(
            x_TD, grad_TF, a_RD, b_FR, needs_x=ctx.needs_input_grad[0]
        )
        if grad_x is not None:
            grad_x = grad_x.to(ctx.x_dtype).view(*grad.shape[:-1], -1)
        return grad_x, None, grad_a_RD, grad_b_FR, None


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


def _are_same(held: tuple[Tensor, Tensor] | None, of: tuple[Tensor, Tensor]) -> bool:
    return held is not None and all(a.is_set_to(b) for a, b in zip(held, of, strict=True))


def as_published(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded as a policy's values are, in a tensor of its own."""
    return value.to(PUBLISHED_DTYPE).to(dtype, copy=True)
