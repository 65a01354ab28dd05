"""What a cell trains on: a model shape, questions with a checker, and how both are drawn."""

import random
from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from asympo.lab.digits import DigitAddition
from asympo.lab.presets.plan import TaskSettings
from asympo.lab.sampling import Drawn
from asympo.lab.start import Weights, digit_task, tiny_model, tiny_sampler
from asympo.learner.model.batching import TrainedGroup, TrainedResponse, pack
from asympo.learner.model.policy import Policy

TokenIds = tuple[int, ...]


class Question(Protocol):
    """A prompt and its checker."""

    @property
    def prompt_ids(self) -> TokenIds: ...

    def reward(self, response_ids: Sequence[int]) -> float: ...


class Draws(Protocol):
    """A sampler."""

    def load(self, weights: Weights) -> None: ...

    def draw(
        self, prompts: Sequence[TokenIds], *, num_samples: int, generator: torch.Generator
    ) -> list[list[Drawn]]: ...


class World(Protocol):
    """A model with a task."""

    token_budget: int
    """Tokens of one micro-batch."""
    num_evaluation_samples: int
    """Responses to each held-out question at every look."""

    @property
    def held_out(self) -> Sequence[Question]: ...

    def draw(self, rng: random.Random, count: int) -> Sequence[Question]:
        """Questions to train on."""

    def make_model(self) -> PreTrainedModel:
        """The shape to be trained, with the product's attention; weights are set by the caller."""

    def make_sampler(self) -> Draws:
        """Draws from snapshots of that shape."""

    def sequence_logprobs(
        self, policy: Policy, sequences: Sequence[tuple[TokenIds, TokenIds]]
    ) -> list[float]:
        """Log-prob of each response given its prompt, summed over its tokens."""


@torch.no_grad()
def sequence_logprobs(
    policy: Policy, sequences: Sequence[tuple[TokenIds, TokenIds]], *, token_budget: int
) -> list[float]:
    """By the product's packed forward; equal sequences are computed once."""
    distinct = sorted(set(sequences))
    groups: dict[TokenIds, list[TrainedResponse]] = {}
    for prompt, response in distinct:
        groups.setdefault(prompt, []).append(TrainedResponse(token_ids=response, advantage=1.0))
    packed = pack(
        [TrainedGroup(prompt_ids=prompt, responses=tuple(rs)) for prompt, rs in groups.items()],
        token_budget=token_budget,
        share_prefixes=True,
    )
    found: dict[tuple[TokenIds, TokenIds], float] = {}
    for batch in packed:
        means = policy.response_nll(batch).mean_nll_R.tolist()
        for mean, num, sequence in zip(means, batch.num_trained_R, batch.sequences_R, strict=True):
            found[sequence] = -mean * num
    return [found[sequence] for sequence in sequences]


class DigitWorld:
    """The tiny transformer and digit addition."""

    def __init__(self, settings: TaskSettings) -> None:
        self._settings = settings
        self._task: DigitAddition = digit_task(settings)
        self.token_budget = settings.token_budget
        self.num_evaluation_samples = 1

    @property
    def held_out(self) -> Sequence[Question]:
        return self._task.held_out

    def draw(self, rng: random.Random, count: int) -> Sequence[Question]:
        return self._task.draw(rng, count)

    def make_model(self) -> PreTrainedModel:
        return tiny_model(self._settings)

    def make_sampler(self) -> Draws:
        return tiny_sampler(self._settings)

    def sequence_logprobs(
        self, policy: Policy, sequences: Sequence[tuple[TokenIds, TokenIds]]
    ) -> list[float]:
        return sequence_logprobs(policy, sequences, token_budget=self.token_budget)
