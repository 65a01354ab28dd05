"""A learner of a small random model, as steps of the check train it: real policy, optimizer and stepper."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig

from asympo.bench.cell import step_scope, trained_groups
from asympo.bench.models import random_model
from asympo.bench.shapes import Rollout, make_rollouts, parse_shape
from asympo.learner.model.forward_path import FAST
from asympo.learner.model.policy import Policy
from asympo.learner.ranks import Ranks
from asympo.learner.step.objectives import OBJECTIVES, ObjectiveOptions
from asympo.learner.step.optimizer import make_optimizer
from asympo.learner.step.shards import Shards
from asympo.learner.step.shares import share_out
from asympo.learner.step.step import Stepper, StepResult

_VOCABULARY = 1000


def small_config() -> LlamaConfig:
    """Heads of 64, fewer for keys; a tied head."""
    return LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )


class SmallLearner:
    """One model with its optimizer, alone or one of several ranks."""

    def __init__(
        self, device: torch.device, *, dtype: torch.dtype, attention: str, ranks: Ranks | None = None
    ) -> None:
        # What is sharded moves to its device layer by layer, as in the learner itself.
        model = random_model(small_config(), device=torch.device("cpu"))
        if ranks is None:
            model = model.to(device)  # type: ignore[arg-type]
        self.policy = Policy(
            model=model.eval(), compute_dtype=dtype, chunk_rows=64, path=FAST.with_attention(attention)
        )
        self._ranks = ranks
        shards = None if ranks is None else Shards(policy=self.policy, ranks=ranks)
        self._optimizer = make_optimizer(
            model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0
        )
        self._stepper = Stepper(
            policy=self.policy,
            optimizer=self._optimizer,
            objective=OBJECTIVES["asympo"],
            options=ObjectiveOptions(),
            learning_rate=lambda step: 1e-3,
            max_grad_norm=1.0,
            token_budget=512,
            share_prefixes=True,
            shards=shards,
        )

    def step(self, rollouts: Sequence[Rollout], *, step: int) -> StepResult:
        """One optimizer step; of several ranks each trains its share."""
        held = groups = trained_groups(rollouts)
        if self._ranks is not None:
            numbered = list(enumerate(groups))
            shares = share_out(numbered, num_ranks=self._ranks.num_ranks, share_prefixes=True)
            held = [share.of(groups[share.sequence]) for share in shares[self._ranks.rank]]
        return self._stepper.train(held, step_scope(rollouts), step=step)

    def weights(self) -> dict[str, torch.Tensor]:
        """Copies, those of several ranks put together."""
        return {
            name: (each.full_tensor() if hasattr(each, "full_tensor") else each).detach().cpu().clone()
            for name, each in self.policy.model.named_parameters()
        }

    def state(self) -> dict[str, Any]:
        """Weights and optimizer, as bytes would hold them."""
        optimizer = self._optimizer.state_dict()
        kept = {
            index: {name: value.clone() for name, value in each.items()}
            for index, each in optimizer["state"].items()
        }
        return {"weights": self.weights(), "optimizer": {**optimizer, "state": kept}}

    def load(self, state: dict[str, Any]) -> None:
        self.policy.model.load_state_dict(state["weights"], strict=False)
        self._optimizer.load_state_dict(state["optimizer"])


def rollouts_of(shape: str) -> list[Rollout]:
    return make_rollouts(parse_shape(shape), vocab_size=_VOCABULARY)
