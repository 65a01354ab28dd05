"""Held-out accuracy, measured through a generator: greedy responses of the policy it serves."""

import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from asympo.common.errors import AsympoError, NoProgress
from asympo.common.proxies import DIRECT_CHANNEL
from asympo.evaluator.estimate import wilson_interval
from asympo.local.process import run_helper
from asympo.tasks.base import TaskPrompt
from asympo.v1 import generator_service_pb2 as messages
from asympo.v1 import rollout_pb2
from asympo.v1.generator_service_pb2_grpc import GeneratorServiceStub

_CHUNK = 256
_CALL_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of held-out prompts answered with full reward by one policy."""

    num_correct: int
    num_prompts: int
    policy_step: int | None
    """None for the start-up model, before any published policy."""
    mean_reward: float

    @property
    def value(self) -> float:
        return self.num_correct / self.num_prompts if self.num_prompts else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval."""
        return wilson_interval(self.num_correct, self.num_prompts)

    def __str__(self) -> str:
        low, high = self.interval
        of = f"{self.num_correct} of {self.num_prompts}"
        return f"{self.value:.3f} ({of}; 95 % interval {low:.3f} to {high:.3f})"


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Rendered held-out prompts of a run."""

    prompts: tuple[TaskPrompt, ...]
    token_ids: tuple[tuple[int, ...], ...]
    num_prompts: int
    """That the run trains on."""


def load_held_out(path: Path) -> HeldOut:
    content = json.loads(path.read_text())
    prompts: list[dict[str, Any]] = content["prompts"]
    return HeldOut(
        prompts=tuple(TaskPrompt(**each["prompt"]) for each in prompts),
        token_ids=tuple(tuple(each["token_ids"]) for each in prompts),
        num_prompts=content.get("num_prompts", 0),
    )


def render_held_out(learner_settings: Path, out: Path, *, max_prompts: int) -> HeldOut:
    """The run's held-out prompts, rendered once and kept in `out`."""
    # An earlier release kept the numbers of the prompts alone.
    if not out.exists() or '"prompt":' not in out.read_text():
        command = [
            sys.executable,
            "-m",
            "asympo.run.held_out.prompts",
            str(learner_settings),
            str(out),
            str(max_prompts),
        ]
        done = run_helper(command, seconds=600)
        if done.returncode != 0:
            words = done.stderr.strip().splitlines() or ["no output"]
            error = AsympoError(words[-1].removeprefix("asympo: "))
            error.exit_code = done.returncode
            raise error
    return load_held_out(out)


def greedy_responses(
    address: str, token_ids: Sequence[Sequence[int]], *, max_tokens: int, stop: Sequence[str] = ()
) -> tuple[list[str], list[tuple[int, ...]], int | None]:
    """One greedy response to each prompt, as text and as token ids, and the step of the policy that gave all.

    Raises grpc.RpcError when the generator fails or goes away, NoProgress when its policy changed meanwhile.
    """
    texts: list[str] = []
    response_ids: list[tuple[int, ...]] = []
    steps: set[int | None] = set()
    with grpc.insecure_channel(address, options=DIRECT_CHANNEL) as channel:
        stub = GeneratorServiceStub(channel)
        for start in range(0, len(token_ids), _CHUNK):
            request = messages.GeneratorServiceGenerateRequest(
                prompts=[rollout_pb2.Prompt(token_ids=ids) for ids in token_ids[start : start + _CHUNK]],
                num_samples=1,
                sampling=messages.Sampling(
                    temperature=0.0, top_p=1.0, max_tokens=max_tokens, stop=list(stop)
                ),
            )
            answer = stub.Generate(request, timeout=_CALL_SECONDS)
            texts += [group.responses[0].text for group in answer.groups]
            response_ids += [tuple(group.responses[0].token_ids) for group in answer.groups]
            steps |= {
                answer.policy_step if answer.HasField("policy_step") else None,
                answer.last_policy_step if answer.HasField("last_policy_step") else None,
            }
    if len(steps) != 1:
        raise NoProgress(f"the policy changed during the evaluation (steps {sorted(map(str, steps))})")
    return texts, response_ids, steps.pop()


class Evaluation(threading.Thread):
    """One measurement in a thread of its own, so that the supervisor goes on looking after its processes."""

    def __init__(
        self,
        *,
        address: str,
        held_out: HeldOut,
        settings: Any,
        allow_python: bool = False,
        num_attempts: int = 3,
    ) -> None:
        """`settings` is the learner's: its task scores, its sampling limits the length."""
        super().__init__(name="evaluation", daemon=True)
        self._address = address
        self._held_out = held_out
        self._settings = settings
        self._allow_python = allow_python
        self._num_attempts = num_attempts
        self.accuracy: Accuracy | None = None
        self.problem: str | None = None

    def run(self) -> None:
        for attempt in range(self._num_attempts):
            try:
                self.accuracy = self._measure()
                self.problem = None
                return
            except grpc.RpcError as error:
                code = error.code() if isinstance(error, grpc.Call) else None
                self.problem = f"the generator did not answer the evaluation ({code})"
            except AsympoError as error:
                self.problem = str(error)
            if attempt + 1 < self._num_attempts:
                threading.Event().wait(2.0 * (attempt + 1))

    def _measure(self) -> Accuracy:
        from asympo.rewards.scorer import Scored, Scorer

        sampling = self._settings.sampling
        texts, token_ids, step = greedy_responses(
            self._address, self._held_out.token_ids, max_tokens=sampling.max_tokens, stop=sampling.stop
        )
        progress = self._settings.progress(num_prompts=self._held_out.num_prompts, step=step or 0)
        scorer = Scorer(task=self._settings.task, timeout_seconds=30.0, allow_python=self._allow_python)
        try:
            rewards = [
                score.reward if isinstance(score, Scored) else 0.0
                for prompt, text, ids in zip(self._held_out.prompts, texts, token_ids, strict=True)
                for score in scorer.score(prompt, [text], token_ids=[ids], progress=progress)
            ]
        finally:
            scorer.close()
        return Accuracy(
            num_correct=sum(reward >= 1.0 for reward in rewards),
            num_prompts=len(rewards),
            policy_step=step,
            mean_reward=sum(rewards) / max(1, len(rewards)),
        )
