"""Held-out accuracy, measured through a generator: greedy responses of the policy it serves."""

import asyncio
import json
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.common.errors import AsympoError, NoProgress
from asympo.common.rollout_log.evals.result import EvalResult
from asympo.engines.base import SamplingSettings
from asympo.evaluator.config import EvalConfig
from asympo.evaluator.episodes import EpisodePlayer, measure_episodes
from asympo.evaluator.estimate import wilson_interval
from asympo.evaluator.measure import measure
from asympo.evaluator.prepare import Prepared
from asympo.evaluator.samplers import FleetSampler
from asympo.local.process import run_helper
from asympo.rewards.scorer import Scorer
from asympo.tasks.base import TaskPrompt

_MAX_IN_FLIGHT = 256
_MAX_EPISODES = 8
"""At the same time: each may be processes of its own."""
_NUM_ATTEMPTS = 3


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
        run_helper(command, seconds=600)
    return load_held_out(out)


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """How a task that is an environment is measured."""

    player: EpisodePlayer
    door: str
    """Of the generator that is asked."""


class Evaluation(threading.Thread):
    """One measurement in a thread of its own, so that the supervisor goes on looking after its processes."""

    def __init__(
        self,
        *,
        address: str,
        held_out: HeldOut,
        settings: Any,
        allow_python: bool = False,
        episodes: Episodes | None = None,
    ) -> None:
        """`settings` is the learner's: its task scores, its sampling limits the length."""
        super().__init__(name="evaluation", daemon=True)
        self._address = address
        self._held_out = held_out
        self._settings = settings
        self._allow_python = allow_python
        self._episodes = episodes
        self.accuracy: Accuracy | None = None
        self.problem: str | None = None

    def run(self) -> None:
        for attempt in range(1, _NUM_ATTEMPTS + 1):
            try:
                self.accuracy = self._measure()
                self.problem = None
                return
            except AsympoError as error:
                self.problem = str(error)
            if attempt < _NUM_ATTEMPTS:
                threading.Event().wait(2.0 * attempt)

    def _measure(self) -> Accuracy:
        settings, config = self._settings, EvalConfig()
        scorer = Scorer(task=settings.task, timeout_seconds=30.0, allow_python=self._allow_python)
        prepared = Prepared(
            config=config,
            task=settings.task,
            prompts=self._held_out.prompts,
            sampling=config.sampling(SamplingSettings(**settings.sampling.model_dump())),
            scorer=scorer,
            progress=settings.progress(num_prompts=self._held_out.num_prompts),
            prompt_ids=self._held_out.token_ids,
        )
        try:
            result = asyncio.run(_ask(self._address, prepared, self._episodes))
        finally:
            scorer.close()
        steps = (result.policy_step, result.last_policy_step)
        if len(set(steps)) != 1:
            raise NoProgress(f"the policy changed during the evaluation (from step {steps[0]} to {steps[1]})")
        return Accuracy(
            num_correct=round(result.pass_at[1].value * result.prompts),
            num_prompts=result.prompts,
            policy_step=result.policy_step,
            mean_reward=result.mean.value,
        )


async def _ask(address: str, prepared: Prepared, episodes: Episodes | None) -> EvalResult:
    sampler = FleetSampler([address])
    try:
        if episodes is not None:
            measured = await measure_episodes(
                prepared,
                episodes.player,
                door=episodes.door,
                sampler=sampler,
                max_in_flight=_MAX_EPISODES,
            )
            return measured.result
        return (await measure(prepared, sampler, max_in_flight=_MAX_IN_FLIGHT)).result
    finally:
        await sampler.close()
