"""Muon for the hidden matrices and AdamW for everything else, as one optimizer with one state."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from asympo.common.errors import BadSetting

MUON, ADAMW = "muon", "adamw"
"""Values of `optimizer` in a parameter group: who updates it."""


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW over one list of groups, so that saving and clipping see one optimizer.

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
        muon = torch.optim.Muon(
            [{"params": matrices, "optimizer": MUON}],
            lr=learning_rate,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = torch.optim.AdamW(others, lr=learning_rate, betas=betas, eps=eps, fused=True)
        self._parts: dict[str, torch.optim.Optimizer] = {MUON: muon, ADAMW: adamw}
        super().__init__([*muon.param_groups, *adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both."""
        if closure is not None:
            raise NotImplementedError("a step here has its gradients already")
        for name, part in self._parts.items():
            # Loading a state replaces groups and state of this object: the parts look at what it has now.
            part.param_groups = [group for group in self.param_groups if group["optimizer"] == name]
            part.state = self.state
            part.step()


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """What Muon is for: trained matrices of neither embedding nor head. Raises BadSetting without any."""
    outer = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tables = {id(p) for module in (*outer, head) if module is not None for p in module.parameters()}
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in tables]
    if not matrices:
        raise BadSetting(f"{type(model).__name__} has no hidden matrix for Muon: set optimizer to adamw")
    return matrices
