"""One cell of the grid: one arm, one staleness, one learning rate, one seed, from the common start."""

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch

from asympo.common.records import group_advantages, has_signal
from asympo.lab.ages import Staleness, draw_age, oldest_age
from asympo.lab.arms import Arm, find_arm
from asympo.lab.old_weights import OldWeights
from asympo.lab.sampling import Drawn, set_weights
from asympo.lab.start import Weights, weights_of
from asympo.lab.variants import TokenLosses
from asympo.lab.worlds import Question, World
from asympo.learner.model.batching import TrainedGroup, TrainedResponse
from asympo.learner.model.policy import Policy
from asympo.learner.step.objectives import StepScope
from asympo.learner.step.optimizer import make_optimizer
from asympo.learner.step.step import Stepper, StepResult

OptimizerName = Literal["adamw", "sgd"]


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """Everything that decides a cell's numbers beside the preset's world."""

    arm: str
    constant: float
    """Value of the arm's own constant."""
    staleness: int
    """K: age of the policy that the responses are drawn from, in optimizer steps."""
    kind: Staleness
    """How ages are distributed around K."""
    learning_rate: float
    seed: int
    """Order of prompts and every drawn token."""
    steps: int
    """Optimizer steps, those without any signal included."""
    groups_per_step: int
    group_size: int
    evaluate_every: int
    """Steps between two looks at the held-out problems."""
    optimizer: OptimizerName = "adamw"
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    task: str = "short"
    """Key into the preset's tasks."""

    @property
    def name(self) -> str:
        """File name without suffix; differs where any field differs."""
        parts = [
            self.task,
            self.arm,
            f"c{self.constant:g}",
            f"k{self.staleness}",
            self.kind,
            f"lr{self.learning_rate:g}",
        ]
        parts += [f"s{self.seed}", f"n{self.steps}", f"b{self.groups_per_step}x{self.group_size}"]
        parts += [f"e{self.evaluate_every}", self.optimizer, self.compute_dtype]
        return "_".join(parts)


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What a cell measured."""

    spec: CellSpec
    steps: list[dict[str, Any]]
    """A row for each step: age, reward, NLLs by sign, gradient norm, entropy, response length."""
    evaluations: list[dict[str, Any]]
    """Held-out accuracy, response length, KL to the start; the first row is the start itself."""
    final_accuracy: float | None
    """Sampled, on the held-out problems; None after a number that was not finite."""
    made_by: dict[str, str] = field(default_factory=dict)
    """Versions of what computed it, and the device; empty where the file of the cell does not say."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "CellResult":
        return cls(**{**values, "spec": CellSpec(**values["spec"])})


class Cell:
    """Trains and measures; the product's step does the training."""

    def __init__(self, spec: CellSpec, *, world: World, start: Weights) -> None:
        self._spec, self._world, self._start = spec, world, start
        self._arm: Arm = find_arm(spec.arm)
        self._model = world.make_model()
        set_weights(self._model, start)
        self._tokens = TokenLosses(model=self._model, compute_dtype=getattr(torch, spec.compute_dtype))
        self._reference = Policy(model=world.make_model(), compute_dtype=torch.float32)
        set_weights(self._reference.model, start)
        self._sampler = world.make_sampler()
        self._stepper = Stepper(
            policy=self._tokens,
            optimizer=self._make_optimizer(),
            objective=self._arm.make(self._tokens, spec.constant),
            options=self._arm.options(spec.constant),
            learning_rate=lambda step: spec.learning_rate,
            max_grad_norm=self._arm.max_grad_norm(spec.constant),
            token_budget=world.token_budget,
            share_prefixes=True,
        )
        self._old = OldWeights(start, count=oldest_age(kind=spec.kind, mean=spec.staleness) + 1)
        self._prompt_rng = random.Random(f"prompts/{spec.seed}")
        self._age_rng = random.Random(f"ages/{spec.seed}")
        self._generator = torch.Generator().manual_seed(1_000_003 * (spec.seed + 1))

    def run(self) -> CellResult:
        """All steps; ends early once weights are not finite."""
        spec = self._spec
        rows: list[dict[str, Any]] = []
        evaluations = [{"step": 0, **self._evaluate()}]
        for step in range(1, spec.steps + 1):
            rows.append({"step": step, **self._step(step)})
            if not self._is_finite():
                break
            if step % spec.evaluate_every == 0 or step == spec.steps:
                evaluations.append({"step": step, **self._evaluate()})
        is_whole = evaluations[-1]["step"] == spec.steps
        return CellResult(
            spec=spec,
            steps=rows,
            evaluations=evaluations,
            final_accuracy=evaluations[-1]["accuracy"] if is_whole else None,
        )

    def _step(self, step: int) -> dict[str, Any]:
        spec = self._spec
        drawn_age = draw_age(self._age_rng, kind=spec.kind, mean=spec.staleness)
        age = min(drawn_age, len(self._old) - 1)
        self._sampler.load(self._old.of_age(age))
        questions = self._world.draw(self._prompt_rng, spec.groups_per_step)
        drawn = self._sampler.draw(
            [question.prompt_ids for question in questions],
            num_samples=spec.group_size,
            generator=self._generator,
        )
        rewards = [
            [question.reward(each.token_ids) for each in responses]
            for question, responses in zip(questions, drawn, strict=True)
        ]
        groups = [
            self._group(question, responses, scores)
            for question, responses, scores in zip(questions, drawn, rewards, strict=True)
            if has_signal(scores)
        ]
        flat = [score for scores in rewards for score in scores]
        lengths = [len(each.token_ids) for responses in drawn for each in responses]
        row: dict[str, Any] = {
            "age": age,
            "reward": sum(flat) / len(flat),
            "response_tokens": sum(lengths) / len(lengths),
            "groups_with_signal": len(groups),
        }
        if groups:
            self._tokens.behaviour = {
                (question.prompt_ids, each.token_ids): each.logprobs
                for question, responses in zip(questions, drawn, strict=True)
                for each in responses
            }
            row |= _step_columns(self._stepper.train(groups, self._scope(len(groups)), step=step))
        self._old.add(weights_of(self._model))
        return row

    def _group(self, question: Question, responses: Sequence[Drawn], scores: list[float]) -> TrainedGroup:
        advantages = group_advantages(scores)
        if self._arm.divides_by_std:
            deviation = math.sqrt(math.fsum(a * a for a in advantages) / len(advantages))
            advantages = tuple(advantage / deviation for advantage in advantages)
        return TrainedGroup(
            prompt_ids=question.prompt_ids,
            responses=tuple(
                TrainedResponse(token_ids=each.token_ids, advantage=advantage)
                for each, advantage in zip(responses, advantages, strict=True)
                if advantage != 0.0
            ),
        )

    def _scope(self, num_with_signal: int) -> StepScope:
        spec = self._spec
        scope = StepScope(
            num_responses=spec.groups_per_step * spec.group_size,
            num_groups=spec.groups_per_step,
            num_groups_without_signal=spec.groups_per_step - num_with_signal,
        )
        if self._arm.drops_groups_without_signal:
            scope = replace(scope, num_responses=num_with_signal * spec.group_size)
        return scope

    @torch.no_grad()
    def _evaluate(self) -> dict[str, Any]:
        """Samples of the current policy on the held-out problems, with the same draws for every cell."""
        self._sampler.load(weights_of(self._model))
        questions = self._world.held_out
        drawn = self._sampler.draw(
            [question.prompt_ids for question in questions],
            num_samples=self._world.num_evaluation_samples,
            generator=torch.Generator().manual_seed(11),
        )
        flat = [
            (question, each)
            for question, responses in zip(questions, drawn, strict=True)
            for each in responses
        ]
        own = [sum(each.logprobs) for _, each in flat]
        reference = self._world.sequence_logprobs(
            self._reference, [(question.prompt_ids, each.token_ids) for question, each in flat]
        )
        return {
            "accuracy": sum(question.reward(each.token_ids) for question, each in flat) / len(flat),
            "response_tokens": sum(len(each.token_ids) for _, each in flat) / len(flat),
            "kl_to_start": sum(a - b for a, b in zip(own, reference, strict=True)) / len(flat),
        }

    def _is_finite(self) -> bool:
        return all(bool(torch.isfinite(parameter).all()) for parameter in self._model.parameters())

    def _make_optimizer(self) -> torch.optim.Optimizer:
        if self._spec.optimizer == "sgd":
            return torch.optim.SGD(self._model.parameters(), lr=self._spec.learning_rate)
        return make_optimizer(
            self._model,
            learning_rate=self._spec.learning_rate,
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=0.0,
        )


def _step_columns(result: StepResult) -> dict[str, Any]:
    ratio = (
        result.nll_negative / result.nll_positive
        if result.nll_positive and result.nll_negative is not None
        else None
    )
    return {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "is_applied": result.is_applied,
        "nll_positive": result.nll_positive,
        "nll_negative": result.nll_negative,
        "nll_ratio": ratio,
        "entropy": result.entropy,
    }
