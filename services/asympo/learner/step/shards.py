"""How a step is computed by several ranks together: FSDP2, rows of equal number, one reduction a step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from asympo.learner.model.batching import PackedBatch, TrainedGroup, TrainedResponse, collate
from asympo.learner.model.policy import Policy
from asympo.learner.model.weights import is_adapted
from asympo.learner.ranks import Ranks
from asympo.learner.step.objectives import StepScope
from asympo.learner.step.shares import share_out


class Shards:
    """The ranks' part in a step; every rank calls in the same order."""

    def __init__(self, *, policy: Policy, ranks: Ranks) -> None:
        self._ranks = ranks
        whole: set[nn.Parameter] = set()
        if is_adapted(policy.model):
            # PEFT takes a while to import.
            from asympo.learner.model.lora import prepare_for_shards

            whole = prepare_for_shards(policy.model, device=_device(ranks))
        self._adapter = [parameter for parameter in policy.model.parameters() if parameter in whole]
        self._root = _shard(policy, ranks, whole=whole)

    @property
    def num_ranks(self) -> int:
        return self._ranks.num_ranks

    def level(self, batches: list[PackedBatch]) -> list[PackedBatch]:
        """As many rows as the rank with most has, since gathering weights is collective."""
        most = max(self._ranks.gather(len(batches)))
        return [*batches, *[_idle_row()] * (most - len(batches))]

    def hand_out(
        self,
        groups: Sequence[tuple[int, TrainedGroup]],
        scope: StepScope,
        *,
        step: int,
        share_prefixes: bool,
        digests: Mapping[int, str],
    ) -> list[TrainedGroup]:
        """The first rank tells the others to train their shares and gets its own.

        `groups`: entry number and responses that enter the loss. Payloads do not travel: every rank fetches
        its entries from the log, and knows by `digests` that they are those that the first rank read.
        """
        shares = share_out(groups, num_ranks=self._ranks.num_ranks, share_prefixes=share_prefixes)
        told = [
            [(share.sequence, digests[share.sequence], share.responses) for share in held] for held in shares
        ]
        self._ranks.tell({"do": "step", "step": step, "scope": asdict(scope), "shares": told})
        by_sequence = dict(groups)
        return [share.of(by_sequence[share.sequence]) for share in shares[self._ranks.rank]]

    def all_done(self) -> None:
        """The step is made on every rank."""
        self._ranks.all_done()

    def before_backward(self, *, is_last: bool) -> None:
        """Gradients stay on their rank until the last row, then are summed over ranks."""
        self._root.set_requires_gradient_sync(is_last)
        self._root.set_is_last_backward(is_last)

    def after_backward(self) -> None:
        """What every rank has whole, an adapter, has the gradient of all ranks from here on.

        A matrix that no rank came to, of an expert without tokens, has none, as on one rank.
        """
        if not self._adapter:
            return
        group = self._ranks.mesh.get_group()
        found = torch.tensor(
            [p.grad is not None for p in self._adapter], device=self._adapter[0].device
        ).int()
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
        reached = [p for p, is_found in zip(self._adapter, found.tolist(), strict=True) if is_found]
        if not reached:
            return
        together = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).view(-1) for p in reached])
        dist.all_reduce(together, group=group)
        for parameter, part in zip(reached, together.split([p.numel() for p in reached]), strict=True):
            parameter.grad = part.view_as(parameter)

    def gather(self, document: Any) -> list[Any]:
        """What every rank found, by rank."""
        return self._ranks.gather(document)


class _Row(nn.Module):
    """The module that FSDP wraps: layers, embeddings and head are whole while its forward runs."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.model = policy.model
        self._compute = policy.compute_nll

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        nll = self._compute(batch)
        return nll.mean_nll_R, nll.entropy_sum


def _device(ranks: Ranks) -> torch.device:
    kind = ranks.mesh.device_type
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def _shard(policy: Policy, ranks: Ranks, *, whole: set[nn.Parameter]) -> FSDPModule:
    """Shards weights, gradients and, through them, the optimizer's state over all ranks, layer by layer.

    Weights stay in their own precision where they are kept. Those of the layers are gathered in the precision
    they are computed in; embeddings, last norm and head as they are, since sums run through them. Those in
    `whole` are left as they are, and so is the precision of a base that they are added to.
    """
    root = _Row(policy)
    is_narrowed = policy.compute_dtype.itemsize < policy.parameter_dtype.itemsize and not whole
    dtype = policy.compute_dtype if is_narrowed else None
    narrow = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=policy.parameter_dtype, cast_forward_inputs=False
    )
    as_kept = MixedPrecisionPolicy(reduce_dtype=policy.parameter_dtype, cast_forward_inputs=False)
    names = set(policy.model._no_split_modules or ())
    for module in [m for m in policy.model.modules() if type(m).__name__ in names]:
        _sum_gradients(fully_shard(module, mesh=ranks.mesh, mp_policy=narrow, ignored_params=whole))
    sharded = _sum_gradients(fully_shard(root, mesh=ranks.mesh, mp_policy=as_kept, ignored_params=whole))
    policy.compute_through(lambda batch: root(batch))
    return sharded


def _sum_gradients(module: FSDPModule) -> FSDPModule:
    """Every term of the loss is divided by the responses of the whole step already."""
    module.set_force_sum_reduction_for_comms(True)
    module.set_gradient_divide_factor(1.0)
    return module


def _idle_row() -> PackedBatch:
    """The shortest row there is, with an advantage of zero: its gradient is exactly zero."""
    response = TrainedResponse(token_ids=(0,), advantage=0.0)
    return collate([TrainedGroup(prompt_ids=(0,), responses=(response,))], share_prefixes=True)
