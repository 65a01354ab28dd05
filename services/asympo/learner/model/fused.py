"""Norms and gated MLPs of the usual decoders with fewer passes over memory and less kept for the backward.

On a CPU what is not a matrix product is bound by memory: autograd's chain of small operations reads and
writes each activation a dozen times and keeps most of them. These functions are exact to rounding: norms in
the input's own precision (float32 or better), products in autocast's where that is on. Modules keep their
names and parameters; one whose arithmetic is not what is written here, shown by a trial on random input,
keeps its own forward, as do all on other devices.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from asympo.learner.model.adapted_weights import AdaptedLinear

log = logging.getLogger(__name__)

_TOLERANCE = 1e-4
"""Of the trial, relative: transformers' norms round to float32 whatever the weights are."""


def fuse(model: nn.Module) -> None:
    """Gives the modules that qualify a fused forward; called again, changes nothing."""
    for module in model.modules():
        forward = _fused_forward(module)
        if forward is not None and _does_the_same(module, forward):
            module.forward = forward


def unfuse(model: nn.Module) -> None:
    """The modules' own forward again."""
    for module in model.modules():
        if is_fused(module):
            del module.forward


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """The modules' own forward for a while."""
    fused = {module: module.__dict__["forward"] for module in model.modules() if is_fused(module)}
    unfuse(model)
    try:
        yield
    finally:
        for module, forward in fused.items():
            module.forward = forward


def is_fused(module: nn.Module) -> bool:
    """Whether its forward is one of those here."""
    return isinstance(module.__dict__.get("forward"), _FusedNorm | _FusedMlp | _FusedAdaptedMlp)


class _FusedNorm:
    """Forward of `weight * x / sqrt(mean(x ** 2) + epsilon)`."""

    def __init__(self, module: nn.Module, epsilon: float) -> None:
        self._module, self._epsilon, self._own = module, epsilon, module.forward

    def __call__(self, hidden_states: Tensor) -> Tensor:
        weight = self._module.weight
        assert isinstance(weight, Tensor)
        if not _is_wide(hidden_states, weight):
            output: Tensor = self._own(hidden_states)
            return output
        with torch.autocast("cpu", enabled=False):
            output = _RmsNorm.apply(hidden_states, weight, self._epsilon)  # type: ignore[no-untyped-call]
        return output


class _FusedMlp:
    """Forward of `down(silu(gate(x)) * up(x))`."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._own = module, module.forward

    def __call__(self, x: Tensor) -> Tensor:
        module = self._module
        weights = [getattr(module, name).weight for name in _PROJECTIONS]
        is_rounded = torch.is_autocast_enabled("cpu") and x.device.type == "cpu"
        # Autocast leaves float64 as it is.
        if is_rounded and torch.float64 not in (x.dtype, weights[0].dtype):
            dtype = torch.get_autocast_dtype("cpu")
        elif _is_wide(x, weights[0]):
            dtype = x.dtype
        else:
            output: Tensor = self._own(x)
            return output
        output = _GatedMlp.apply(x, *weights, dtype)  # type: ignore[no-untyped-call]
        return output


class _FusedAdaptedMlp:
    """The same with an adapter beside each linear, on any device."""

    def __init__(self, projections: list[AdaptedLinear]) -> None:
        self._projections = projections
        self.gate = projections[0]

    def __call__(self, x: Tensor) -> Tensor:
        matrices = [each for projection in self._projections for each in projection.matrices()]
        output: Tensor = _AdaptedMlp.apply(x, *matrices, self._projections)  # type: ignore[no-untyped-call]
        return output


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def _fused_forward(module: nn.Module) -> _FusedNorm | _FusedMlp | _FusedAdaptedMlp | None:
    """By what the module has; whether it does the same is tried afterwards."""
    if is_fused(module) or len(signature(module.forward).parameters) != 1:
        # A norm that also takes a gate is another function.
        return None
    epsilon = getattr(module, "variance_epsilon", None)
    parameters = dict(module.named_parameters(recurse=False))
    if isinstance(epsilon, float) and set(parameters) == {"weight"} and parameters["weight"].dim() == 1:
        return _FusedNorm(module, epsilon)
    projections = [getattr(module, name, None) for name in _PROJECTIONS]
    if all(type(each) is nn.Linear and each.bias is None for each in projections):
        return _FusedMlp(module)
    adapted = [each.__dict__.get("forward") for each in projections if isinstance(each, nn.Module)]
    found = [each for each in adapted if isinstance(each, AdaptedLinear) and each.base.bias is None]
    return _FusedAdaptedMlp(found) if len(found) == len(_PROJECTIONS) else None


def _is_wide(x: Tensor, weight: Tensor) -> bool:
    """Other devices have kernels of their own."""
    return x.device.type == "cpu" and x.dtype == weight.dtype and x.dtype.itemsize >= 4


@torch.no_grad()
def _does_the_same(module: nn.Module, forward: _FusedNorm | _FusedMlp | _FusedAdaptedMlp) -> bool:
    if isinstance(forward, _FusedAdaptedMlp):
        weight, _ = forward.gate.matrices()
    else:
        weight = next(module.parameters())
        if weight.device.type != "cpu" or weight.dtype.itemsize < 4:
            return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, weight.shape[-1], generator=generator, dtype=weight.dtype).to(weight.device)
    x = torch.cat([x, 30 * x])  # clamps show at large values only
    theirs, ours = module.forward(x), forward(x)
    if torch.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE * float(theirs.abs().max())):
        return True
    log.info("%s is not one of the usual kind: it keeps its own forward", type(module).__name__)
    return False


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        return (x * scale).mul_(weight_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, scale = ctx.saved_tensors
        size = x.shape[-1]
        work = grad * x
        work_TD = work.reshape(-1, size)
        grad_weight_D = scale.reshape(1, -1).mm(work_TD).view(size)
        inner = work_TD.mv(weight_D).view(scale.shape)
        along = inner.mul_(scale).mul_(scale).mul_(scale).div_(-size)
        torch.mul(grad, weight_D, out=work)
        return work.mul_(scale).addcmul_(x, along), grad_weight_D, None


class _GatedMlp(torch.autograd.Function):
    """With products of factors in `dtype`. Weights are rounded again for the backward, not kept so."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, dtype: torch.dtype
    ) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1]).to(dtype)
        gate_TF, up_TF = x_TD @ gate_FD.to(dtype).T, x_TD @ up_FD.to(dtype).T
        ctx.save_for_backward(x_TD, gate_TF, up_TF, gate_FD, up_FD, down_DF)
        ctx.x_dtype = x.dtype
        product = silu(gate_TF).mul_(up_TF) @ down_DF.to(dtype).T
        # Not as a view: some layers add to it in place.
        output: Tensor = torch.ops.aten._unsafe_view(product, x.shape)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, gate_TF, up_TF, gate_FD, up_FD, down_DF = ctx.saved_tensors
        dtype, weight_dtype = x_TD.dtype, gate_FD.dtype
        grad_TD = grad.reshape(-1, grad.shape[-1])
        active_TF = silu(gate_TF)
        grad_down_DF = (grad_TD.T @ (active_TF * up_TF)).to(weight_dtype)
        grad_TF = grad_TD @ down_DF.to(dtype)
        grad_up_TF = active_TF.mul_(grad_TF)
        grad_gate_TF = torch.ops.aten.silu_backward(grad_TF.mul_(up_TF), gate_TF)
        grad_x_TD = (grad_gate_TF @ gate_FD.to(dtype)).addmm_(grad_up_TF, up_FD.to(dtype))
        grad_gate_FD = (grad_gate_TF.T @ x_TD).to(weight_dtype)
        grad_up_FD = (grad_up_TF.T @ x_TD).to(weight_dtype)
        return grad_x_TD.to(ctx.x_dtype).view(grad.shape), grad_gate_FD, grad_up_FD, grad_down_DF, None


class _AdaptedMlp(torch.autograd.Function):
    """With gradients of x and of the adapters' matrices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *matrices_and_projections: Any) -> Tensor:
        *matrices, (gate, up, down) = matrices_and_projections
        x_TD = x.reshape(-1, x.shape[-1]).to(gate.compute_dtype)
        gate_TF, up_TF = gate.product(x_TD, *matrices[0:2]), up.product(x_TD, *matrices[2:4])
        ctx.save_for_backward(x_TD, gate_TF, up_TF, *matrices)
        ctx.projections, ctx.x_dtype = (gate, up, down), x.dtype
        product = down.product(silu(gate_TF).mul_(up_TF), *matrices[4:6])
        # Not as a view: some layers add to it in place.
        output: Tensor = torch.ops.aten._unsafe_view(product, x.shape)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, gate_TF, up_TF, *matrices = ctx.saved_tensors
        gate, up, down = ctx.projections
        grad_TD = grad.reshape(-1, grad.shape[-1])
        active_TF = silu(gate_TF)
        grad_TF, *down_grads = down.gradients(active_TF * up_TF, grad_TD, *matrices[4:6])
        grad_up_TF = active_TF.mul_(grad_TF)
        grad_gate_TF = torch.ops.aten.silu_backward(grad_TF.mul_(up_TF), gate_TF)
        needs_x = ctx.needs_input_grad[0]
        grad_x, *gate_grads = gate.gradients(x_TD, grad_gate_TF, *matrices[0:2], needs_x=needs_x)
        through_up, *up_grads = up.gradients(x_TD, grad_up_TF, *matrices[2:4], needs_x=needs_x)
        if needs_x:
            grad_x = grad_x.add_(through_up).to(ctx.x_dtype).view(grad.shape)
        return grad_x, *gate_grads, *up_grads, *down_grads, None
