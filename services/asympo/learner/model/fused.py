"""Norms and gated MLPs of the usual decoders with fewer passes over memory and less kept for the backward.

On a CPU what is not a matrix product is bound by memory: autograd's chain of small operations reads and
writes each activation a dozen times and keeps most of them. These functions are exact to rounding, in the
input's own precision (float32 or better). Modules keep their names and parameters; one whose arithmetic is
not what is written here, shown by a trial on random input, keeps its own forward, as do all on other devices.
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
    return isinstance(module.__dict__.get("forward"), _FusedNorm | _FusedMlp)


class _FusedNorm:
    """Forward of `weight * x / sqrt(mean(x ** 2) + epsilon)`."""

    def __init__(self, module: nn.Module, epsilon: float) -> None:
        self._module, self._epsilon, self._own = module, epsilon, module.forward

    def __call__(self, hidden_states: Tensor) -> Tensor:
        weight = self._module.weight
        assert isinstance(weight, Tensor)
        if not _is_wide(hidden_states, weight):
            output: Tensor = self._own(hidden_states)
        else:
            output = _RmsNorm.apply(hidden_states, weight, self._epsilon)  # type: ignore[no-untyped-call]
        return output


class _FusedMlp:
    """Forward of `down(silu(gate(x)) * up(x))`."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._own = module, module.forward

    def __call__(self, x: Tensor) -> Tensor:
        module = self._module
        weights = [getattr(module, name).weight for name in _PROJECTIONS]
        if not _is_wide(x, weights[0]):
            output: Tensor = self._own(x)
        else:
            output = _GatedMlp.apply(x, *weights)  # type: ignore[no-untyped-call]
        return output


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def _fused_forward(module: nn.Module) -> _FusedNorm | _FusedMlp | None:
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
    return None


def _is_wide(x: Tensor, weight: Tensor) -> bool:
    """Autocast has rules of its own for every operation, and other devices have kernels of their own."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype.itemsize >= 4
        and not torch.is_autocast_enabled("cpu")
    )


@torch.no_grad()
def _does_the_same(module: nn.Module, forward: _FusedNorm | _FusedMlp) -> bool:
    weight = next(module.parameters())
    if weight.device.type != "cpu" or weight.dtype.itemsize < 4:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, weight.shape[-1], generator=generator, dtype=weight.dtype)
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
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        gate_TF, up_TF = x_TD @ gate_FD.T, x_TD @ up_FD.T
        ctx.save_for_backward(x_TD, gate_TF, up_TF, gate_FD, up_FD, down_DF)
        product = silu(gate_TF).mul_(up_TF) @ down_DF.T
        # Not as a view: some layers add to it in place.
        output: Tensor = torch.ops.aten._unsafe_view(product, x.shape)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, gate_TF, up_TF, gate_FD, up_FD, down_DF = ctx.saved_tensors
        grad_TD = grad.reshape(-1, grad.shape[-1])
        active_TF = silu(gate_TF)
        grad_down_DF = grad_TD.T @ (active_TF * up_TF)
        grad_TF = grad_TD @ down_DF
        grad_up_TF = active_TF.mul_(grad_TF)
        grad_gate_TF = torch.ops.aten.silu_backward(grad_TF.mul_(up_TF), gate_TF)
        grad_x_TD = (grad_gate_TF @ gate_FD).addmm_(grad_up_TF, up_FD)
        return grad_x_TD.view(grad.shape), grad_gate_TF.T @ x_TD, grad_up_TF.T @ x_TD, grad_down_DF
