"""One learner under measurement: the product's own step, with parts switched off by name."""

import statistics
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from asympo.bench.shapes import Rollout
from asympo.learner.device import wait_for
from asympo.learner.model.batching import PackedBatch, TrainedGroup, TrainedResponse
from asympo.learner.model.forward_path import ForwardPath
from asympo.learner.model.fused import unfused
from asympo.learner.model.policy import Policy, ResponseNll
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions, StepScope
from asympo.learner.step.optimizer import make_optimizer
from asympo.learner.step.step import Stepper, StepResult

LEARNING_RATE = 1e-6
"""Small enough that repeated steps on the same rollouts stay the same work."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the measured learner, with its own defaults, and the parts that may be switched off."""

    compute_dtype: torch.dtype = torch.float32
    token_budget: int = 1024
    chunk_rows: int = 256
    share_prefixes: bool = True
    attention: str = "blocks"
    """`blocks` or `flex`."""
    use_chunked_head: bool = True
    """Off: logits of the whole micro-batch and autograd's cross entropy."""
    use_fused_optimizer: bool = True
    """Off: AdamW as a loop over parameters."""
    use_fused_layers: bool = True
    """Off: the norms and MLPs of transformers as they are."""


class LearnerCell:
    """A model with its optimizer; steps under any options."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self._optimizers: dict[bool, torch.optim.Optimizer] = {}

    def step(self, rollouts: Sequence[Rollout], options: Options) -> StepResult:
        """One optimizer step; `seconds` and `optimizer_seconds` last until the device has finished."""
        policy = make_policy(self.model, options)
        stepper = Stepper(
            policy=policy,
            optimizer=self._optimizer(is_fused=options.use_fused_optimizer),
            objective=OBJECTIVES["asympo"],
            options=ObjectiveOptions(),
            learning_rate=lambda step: LEARNING_RATE,
            max_grad_norm=1.0,
            token_budget=options.token_budget,
            share_prefixes=options.share_prefixes,
        )
        with nullcontext() if options.use_fused_layers else unfused(self.model):
            start = time.perf_counter()
            result = stepper.train(trained_groups(rollouts), step_scope(rollouts), step=1)
            wait_for(policy.device)
            seconds = time.perf_counter() - start
        if not result.is_applied:
            raise FloatingPointError("the gradient is not finite: the measurement is void")
        before_update = result.seconds - result.optimizer_seconds
        return replace(result, seconds=seconds, optimizer_seconds=seconds - before_update)

    def _optimizer(self, *, is_fused: bool) -> torch.optim.Optimizer:
        """Kept, so that its state exists once the first step is done."""
        if is_fused not in self._optimizers:
            self._optimizers[is_fused] = (
                make_optimizer(
                    self.model, learning_rate=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
                )
                if is_fused
                else torch.optim.AdamW(
                    self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, foreach=False, fused=False
                )
            )
        return self._optimizers[is_fused]

    def forget_optimizer(self, *, is_fused: bool) -> None:
        """Frees the memory of an optimizer that was only tried."""
        self._optimizers.pop(is_fused, None)


class WholeLogitsPolicy(Policy):
    """The plain way: logits of all trained positions at once, kept by autograd."""

    def response_nll(self, batch: PackedBatch) -> ResponseNll:
        hidden_TD = self._hidden_states(batch)
        device = self.device
        rows_N = torch.from_numpy(batch.source_U[batch.row_N]).to(device)
        with torch.autocast(device.type, dtype=self.compute_dtype, enabled=self.compute_dtype.itemsize < 4):
            logits_NV = self._head(hidden_TD[rows_N])
        target_N = torch.from_numpy(batch.target_N).to(device)
        nll_N = whole_logits_nll(logits_NV, target_N)
        entropy_sum = sum(_entropy(rows) for rows in logits_NV.detach().split(self._head_options.chunk_rows))
        num_R = torch.tensor(batch.num_trained_R, device=device, dtype=nll_N.dtype)
        response_N = torch.from_numpy(batch.response_N).to(device)
        sum_R = torch.zeros_like(num_R).index_add(0, response_N, nll_N)
        return ResponseNll(mean_nll_R=sum_R / num_R, entropy_sum=torch.as_tensor(entropy_sum))


def whole_logits_nll(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Per-token NLL the plain way."""
    return cross_entropy(logits_NV.float(), target_N, reduction="none")


def _entropy(logits_NV: Tensor) -> Tensor:
    log_probability_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    return -torch.linalg.vecdot(log_probability_NV.exp(), log_probability_NV).sum()


def make_policy(model: PreTrainedModel, options: Options) -> Policy:
    """The product's policy, or the one with whole logits."""
    kind = Policy if options.use_chunked_head else WholeLogitsPolicy
    return kind(
        model=model,
        compute_dtype=options.compute_dtype,
        chunk_rows=options.chunk_rows,
        path=ForwardPath(attention=options.attention),
    )


def trained_groups(rollouts: Sequence[Rollout]) -> list[TrainedGroup]:
    """As the learner packs them: responses with advantage zero left out."""
    return [
        TrainedGroup(
            prompt_ids=rollout.prompt_ids,
            responses=tuple(
                TrainedResponse(token_ids=token_ids, advantage=advantage)
                for token_ids, advantage in zip(rollout.responses, rollout.advantages, strict=True)
                if advantage
            ),
        )
        for rollout in rollouts
    ]


def step_scope(rollouts: Sequence[Rollout]) -> StepScope:
    """All groups have signal."""
    return StepScope(
        num_responses=sum(len(rollout.responses) for rollout in rollouts),
        num_groups=len(rollouts),
        num_groups_without_signal=0,
    )


def alternate(
    arms: dict[str, Callable[[], float]], *, repeats: int, warm: Collection[str] | None = None
) -> dict[str, float]:
    """Median seconds of each arm; the arms take turns, so that a slow moment of the machine hits all.

    Each arm runs once untimed first, or only those in `warm`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(repeats + 1):
        for name, run in arms.items():
            if not round_number and warm is not None and name not in warm:
                continue
            taken = run()
            if round_number:
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}
