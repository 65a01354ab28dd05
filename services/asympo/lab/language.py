"""The demo's model and task as the laboratory sees them: rendered prompts, decoded responses."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from asympo.lab.sampling import AncestralSampler
from asympo.lab.worlds import Draws, Question, TokenIds, sequence_logprobs
from asympo.learner.model.policy import Policy, load_model
from asympo.tasks.base import Task, TaskPrompt
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task
from asympo.tasks.render import render_prompt
from asympo.tasks.tokenizer import load_tokenizer

_MAX_TOKENS = 12
_NUM_HELD_OUT = 64


@dataclass(frozen=True, kw_only=True)
class TextQuestion:
    """One prompt of a task of the product."""

    prompt_ids: TokenIds
    prompt: TaskPrompt
    task: Task
    tokenizer: Any

    def reward(self, response_ids: Sequence[int]) -> float:
        """The task's own score of the decoded response."""
        return self.task.score(
            self.prompt, self.tokenizer.decode(list(response_ids), skip_special_tokens=True)
        )


class LanguageWorld:
    """SmolLM2-135M-Instruct and addition in words; weights come from the demo's package."""

    num_evaluation_samples = 1
    token_budget = 768

    def __init__(self, path: Path | None = None) -> None:
        from asympo.demo.model import prepare_model

        self._path = path or prepare_model()
        self._tokenizer = load_tokenizer(str(self._path))
        self._task = load_task(TaskConfig.model_validate({"name": "addition"}))
        self._task.prepare_scoring()
        self._held_out = [self._question(prompt) for prompt in self._task.held_out()[:_NUM_HELD_OUT]]

    @property
    def held_out(self) -> Sequence[Question]:
        return self._held_out

    def draw(self, rng: random.Random, count: int) -> Sequence[Question]:
        indexes = rng.sample(range(len(self._task)), count)
        return [self._question(self._task.prompt(index)) for index in indexes]

    def make_model(self) -> PreTrainedModel:
        return load_model(self._path, dtype=torch.float32, device=_device())

    def make_sampler(self) -> Draws:
        model = self.make_model()
        model.set_attn_implementation("sdpa")
        end = frozenset({int(self._tokenizer.eos_token_id)})
        return AncestralSampler(model, end_token_ids=end, max_tokens=_MAX_TOKENS)

    def sequence_logprobs(
        self, policy: Policy, sequences: Sequence[tuple[TokenIds, TokenIds]]
    ) -> list[float]:
        return sequence_logprobs(policy, sequences, token_budget=self.token_budget)

    def _question(self, prompt: TaskPrompt) -> TextQuestion:
        return TextQuestion(
            prompt_ids=tuple(render_prompt(prompt, self._tokenizer)),
            prompt=prompt,
            task=self._task,
            tokenizer=self._tokenizer,
        )


def weights_file() -> Path:
    """The published weights, which every cell starts from."""
    from asympo.demo.model import prepare_model

    return prepare_model() / "model.safetensors"


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
