"""The optimizer, its learning-rate schedule as a pure function of the step, and the guarded step."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from asympo.learner.step.muon import ADAMW, MUON, MuonWithAdamW, hidden_matrices

OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["constant", "linear", "cosine"]


def make_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    name: OptimizerName = "adamw",
    muon_momentum: float = 0.95,
) -> torch.optim.Optimizer:
    """Fused AdamW for all parameters, or for those that Muon is not made for.

    Norms and biases (one-dimensional parameters) are not decayed, tied weights occur once.
    """
    matrices = hidden_matrices(model) if name == MUON else []
    taken = {id(parameter) for parameter in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay, "optimizer": ADAMW},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "optimizer": ADAMW},
    ]
    groups = [group for group in groups if group["params"]]
    if not matrices:
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)
    return MuonWithAdamW(
        matrices=matrices,
        others=groups,
        learning_rate=learning_rate,
        momentum=muon_momentum,
        weight_decay=weight_decay,
        betas=betas,
        eps=eps,
    )


def learning_rate_at(
    step: int,
    *,
    peak: float,
    schedule: Schedule,
    warmup_steps: int,
    total_steps: int | None,
    final_ratio: float,
) -> float:
    """Learning rate of the `step`-th optimizer step, counted from 1.

    Linear warm-up to `peak`, then constant, or a fall to `final_ratio * peak` at `total_steps`.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant" or total_steps is None:
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    fall = progress if schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return peak * (1 - (1 - final_ratio) * fall)


def clip_gradient(parameters: Iterable[nn.Parameter], *, max_norm: float) -> float:
    """Scales the gradient down to `max_norm` and returns its norm before that; may be inf or nan.

    With sharded parameters it is the norm over all ranks, and every rank calls.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, error_if_nonfinite=False, foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)
    return float(norm)


def guarded_step(
    optimizer: torch.optim.Optimizer, *, learning_rate: float, max_norm: float
) -> tuple[float, bool]:
    """One optimizer step unless the gradient is not finite; (raw gradient norm, was it applied).

    The gradient is released either way, so weights and optimizer state stay good.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    norm = clip_gradient(parameters, max_norm=max_norm)
    is_applied = math.isfinite(norm)
    if is_applied:
        optimizer.step()
        # Fused kernels leave that out, and what is derived from parameters is derived again by it.
        torch.autograd.graph.increment_version([p for p in parameters if not isinstance(p, DTensor)])
    optimizer.zero_grad(set_to_none=True)
    return norm, is_applied
