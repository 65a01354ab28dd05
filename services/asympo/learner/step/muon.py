"""Muon for the hidden matrices and AdamW for everything else, as one optimizer with one state."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from asympo.common.errors import BadSetting

MUON, BATCHED, ADAMW = "muon", "muon of experts", "adamw"
"""Values of `optimizer` in a parameter group: who updates it."""
_A, _B, _C = 3.4445, -4.7750, 2.0315
_NUM_ITERATIONS, _EPSILON = 5, 1e-7
"""As torch's Muon has them."""


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon, the same for stacks of matrices, and torch's AdamW: one optimizer to save and to clip.

    Muon's updates have the root mean square that AdamW's have, so learning rate and weight decay mean the
    same for both. Its orthogonalisation runs in bfloat16 on any device: quick on GPUs, slow on CPUs without
    it. Sharded matrices are put together by DTensor.
    """

    def __init__(
        self,
        *,
        matrices: list[nn.Parameter],
        others: list[dict[str, Any]],
        learning_rate: float,
        momentum: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        shared = {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum}
        single = [p for p in matrices if p.dim() == 2]
        stacks = [p for p in matrices if p.dim() > 2]
        self._parts: dict[str, torch.optim.Optimizer] = {}
        if single:
            group = {"params": single, "optimizer": MUON, **shared}
            self._parts[MUON] = torch.optim.Muon([group], adjust_lr_fn="match_rms_adamw")
        if stacks:
            self._parts[BATCHED] = _BatchedMuon([{"params": stacks, "optimizer": BATCHED}], shared)
        self._parts[ADAMW] = torch.optim.AdamW(others, lr=learning_rate, betas=betas, eps=eps, fused=True)
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of all."""
        if closure is not None:
            raise NotImplementedError("a step here has its gradients already")
        for name, part in self._parts.items():
            # Loading a state replaces groups and state of this object: the parts look at what it has now.
            part.param_groups = [group for group in self.param_groups if group["optimizer"] == name]
            part.state = self.state
            part.step()


class _BatchedMuon(torch.optim.Optimizer):
    """torch's Muon of each matrix of a stack, the experts of a layer, all of a stack together."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = _orthogonal(parameter.grad.lerp(momentum, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                rate = group["lr"] * 0.2 * math.sqrt(max(parameter.shape[-2:]))
                parameter.add_(update, alpha=-rate)


def _orthogonal(stack: Tensor) -> Tensor:
    """Five steps of the quintic iteration towards the nearest orthogonal matrix of each."""
    x = stack.bfloat16()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_EPSILON)
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if is_tall else x


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon is for: trained matrices, and stacks of them, of neither embedding nor head.

    Raises BadSetting without any.
    """
    outer = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.modules.conv._ConvNd)]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tables = {id(p) for module in (*outer, head) if module is not None for p in module.parameters()}
    matrices = [p for p in model.parameters() if p.requires_grad and _is_matrix(p) and id(p) not in tables]
    if not matrices:
        raise BadSetting(f"{type(model).__name__} has no hidden matrix for Muon: set optimizer to adamw")
    return matrices


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Vectors that are kept in more dimensions than one are none."""
    return parameter.dim() == 2 or (parameter.dim() == 3 and min(parameter.shape[1:]) > 1)
