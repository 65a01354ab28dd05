"""Fused norms and MLPs: same values and gradients as the modules they stand for, and only where they do."""

from collections.abc import Callable

import pytest
import torch
from asympo.learner.model.fused import fuse, is_fused, unfused
from torch import Tensor, nn


class Norm(nn.RMSNorm):
    def __init__(self, size: int, *, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(size, eps=1e-6, dtype=dtype)
        self.variance_epsilon = 1e-6


class ShiftedNorm(Norm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 1 / self.weight)


class Mlp(nn.Module):
    def __init__(
        self,
        *,
        activation: Callable[[Tensor], Tensor] = nn.functional.silu,
        bias: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(6, 10, bias=bias, dtype=dtype)
        self.up_proj = nn.Linear(6, 10, bias=bias, dtype=dtype)
        self.down_proj = nn.Linear(10, 6, bias=bias, dtype=dtype)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


def outcome(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of the input, gradients of the parameters."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    output = module(x)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    (output * weight).sum().backward()
    assert x.grad is not None
    return [output.detach(), x.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize("shape", [(5, 6), (1, 4, 6), (1, 3, 5, 6)])
@pytest.mark.parametrize("make", [lambda: Norm(6), Mlp])
def test_fused_gradients_equal_those_of_autograd(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    module = make()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(shape, dtype=torch.float64)
    if len(shape) == 4:
        x = x.transpose(1, 2)
    expected = outcome(module, x)
    fuse(module)
    assert is_fused(module)
    for ours, theirs in zip(outcome(module, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "module",
    [
        ShiftedNorm(6),
        Mlp(activation=nn.functional.gelu),
        Mlp(bias=True),
        Norm(6, dtype=torch.bfloat16),
        nn.LayerNorm(6),
    ],
    ids=["other norm", "other activation", "bias", "bfloat16", "layer norm"],
)
def test_module_of_another_kind_keeps_its_own_forward(module: nn.Module) -> None:
    fuse(module)
    assert not is_fused(module)


def test_unfused_restores_the_modules_own_forward_for_a_while() -> None:
    module = nn.Sequential(Norm(6), Mlp())
    fuse(module)
    with unfused(module):
        assert not any(is_fused(part) for part in module)
    assert all(is_fused(part) for part in module)


@pytest.mark.parametrize("make", [lambda: Norm(6, dtype=torch.float32), lambda: Mlp(dtype=torch.float32)])
def test_under_autocast_outputs_are_the_modules_own_and_gradients_as_near_as_rounding(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    module = make()
    x = torch.randn(1, 3, 6)
    exact = outcome(module, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = outcome(module, x)
        fuse(module)
        output, *gradients = outcome(module, x)
    assert output.dtype == own[0].dtype
    torch.testing.assert_close(output, own[0], rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(gradients, exact[1:], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03 * float(theirs.abs().max()))


def test_autocast_leaves_float64_as_it_is() -> None:
    module, x = Mlp(), torch.randn(3, 6, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = module(x)
        fuse(module)
        found = module(x)
    assert own.dtype == found.dtype == torch.float64
    torch.testing.assert_close(found, own, rtol=1e-12, atol=1e-12)


def test_fused_mlp_keeps_less_for_the_backward_under_autocast() -> None:
    module, x = Mlp(dtype=torch.float32), torch.randn(64, 6, requires_grad=True)

    def bytes_kept() -> int:
        sizes: dict[int, int] = {}

        def keep(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return value

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            output = module(x)
        del output
        return sum(sizes.values())

    own = bytes_kept()
    fuse(module)
    assert bytes_kept() < 0.7 * own
