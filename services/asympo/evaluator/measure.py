"""One evaluation of one policy: ask, score, count."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from asympo.common.errors import PromptRefused
from asympo.common.rollout_log.evals.result import EvalResult
from asympo.common.rollout_log.evals.sample import MAX_RESPONSES, EvalResponse, EvalSample
from asympo.engines.base import SamplingSettings
from asympo.evaluator.config import EvalConfig
from asympo.evaluator.estimate import mean_over_prompts, pass_at_k, pass_ks
from asympo.evaluator.prepare import Prepared
from asympo.rewards.conventions.base import Asked
from asympo.rewards.scorer import Score, Scored, ScoreFailure
from asympo.tasks.base import TaskPrompt

T = TypeVar("T")

_ROUNDING = 1e-9
"""How far weights that make up `right_at` may miss it when they are added."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """Responses to one prompt, and who gave them."""

    texts: list[str]
    token_ids: list[tuple[int, ...]]
    policy_steps: tuple[int | None, ...]
    """Policy that was served when sampling began, and when it ended; empty where nothing was sampled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What an evaluation found."""

    result: EvalResult
    samples: tuple[EvalSample, ...]
    """Answers to its first prompts."""


class Sampler(Protocol):
    """Draws responses from a policy."""

    async def sample(
        self, prompt_ids: Sequence[int], *, num_samples: int, sampling: SamplingSettings
    ) -> Answered:
        """Responses to one prompt. Raises AsympoError when they cannot be had."""


async def measure(
    prepared: Prepared,
    sampler: Sampler,
    *,
    max_in_flight: int,
    policy_fence: int | None = None,
    note: Callable[[int], None] = lambda _: None,
) -> Measured:
    """Asks every prompt, at most `max_in_flight` at a time; `note` hears how many are done.

    Raises PromptRefused when that is all that is answered: it says nothing about the policy.
    """
    begun, slots = time.monotonic(), asyncio.Semaphore(max_in_flight)
    config = prepared.config
    done, refusals = 0, list[str]()

    async def one(prompt: TaskPrompt, ids: Sequence[int]) -> tuple[Answered, list[Score]]:
        nonlocal done
        async with slots:
            try:
                answered = await sampler.sample(ids, num_samples=config.samples, sampling=prepared.sampling)
            except PromptRefused as error:
                # Too long for the model, as nobody could answer: it counts as answered wrongly.
                refusals.append(str(error))
                failure = ScoreFailure(kind="does_not_apply", reason=str(error))
                return Answered(texts=[], token_ids=[], policy_steps=()), [failure] * config.samples
        scores = await asyncio.to_thread(
            prepared.scorer.score,
            prompt,
            answered.texts,
            token_ids=answered.token_ids,
            progress=dataclasses.replace(
                prepared.progress, step=next((step for step in answered.policy_steps if step is not None), 0)
            ),
        )
        done += 1
        note(done)
        return answered, scores

    pairs = await together(
        one(prompt, ids) for prompt, ids in zip(prepared.prompts, prepared.prompt_ids, strict=True)
    )
    if len(refusals) == len(pairs):
        raise PromptRefused(
            f"{config.name} cannot be measured: the engine refuses every one of its {len(pairs)} prompts; of "
            f"one it says: {refusals[0]}"
        )
    return conclude(prepared, pairs, policy_fence=policy_fence, begun=begun)


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results in order; where one fails, the others do not go on."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def conclude(
    prepared: Prepared,
    pairs: Sequence[tuple[Answered, Sequence[Score]]],
    *,
    policy_fence: int | None,
    begun: float,
) -> Measured:
    """The numbers of what was answered to each prompt, and the first of the answers."""
    config = prepared.config
    steps = [step for answered, _ in pairs for step in answered.policy_steps]
    known = [step for step in steps if step is not None]
    result = count(
        config,
        [scores for _, scores in pairs],
        policy_step=min(known, default=None) if len(known) == len(steps) else None,
        last_policy_step=max(known, default=None),
        policy_fence=policy_fence,
        seconds=time.monotonic() - begun,
    )
    shown = list(zip(prepared.prompts, pairs, strict=True))[: config.show_prompts]
    return Measured(
        result=result,
        samples=tuple(_sample(prompt, answered, scores, result) for prompt, (answered, scores) in shown),
    )


def _sample(
    prompt: TaskPrompt, answered: Answered, scores: Sequence[Score], result: EvalResult
) -> EvalSample:
    steps = [step for step in answered.policy_steps if step is not None]
    responses = zip(answered.texts, answered.token_ids, scores, strict=False)
    return EvalSample(
        eval=result.eval,
        policy_step=max(steps, default=None),
        prompt=Asked(prompt=prompt, texts=()).prompt_text,
        answer=prompt.answer,
        responses=tuple(
            EvalResponse(
                text=prompt.prefill + text,
                reward=score.reward if isinstance(score, Scored) else None,
                functions={name: value for name, value in score.functions.items() if value is not None},
                reason="" if isinstance(score, Scored) else score.reason,
                num_tokens=len(token_ids),
            )
            for text, token_ids, score in islice(responses, MAX_RESPONSES)
        ),
        at_seconds=result.at_seconds,
    )


def count(
    config: EvalConfig,
    groups: Sequence[Sequence[Score]],
    *,
    policy_step: int | None,
    last_policy_step: int | None,
    policy_fence: int | None,
    seconds: float,
) -> EvalResult:
    """The numbers of scored responses, one sequence for each prompt. What has no score counts as reward 0."""
    rewards = [[each.reward if isinstance(each, Scored) else 0.0 for each in group] for group in groups]
    right = [sum(reward >= config.right_at - _ROUNDING for reward in group) for group in rewards]
    sums: dict[str, list[float]] = {}
    for score in (score for group in groups for score in group):
        for name, value in score.functions.items():
            if value is not None:
                sums.setdefault(name, []).append(value)
    return EvalResult(
        eval=config.name,
        policy_step=policy_step,
        policy_fence=policy_fence,
        last_policy_step=last_policy_step,
        prompts=len(groups),
        samples=config.samples,
        mean=mean_over_prompts([sum(group) / len(group) for group in rewards]),
        pass_at={
            k: mean_over_prompts([pass_at_k(config.samples, each, k) for each in right])
            for k in pass_ks(config.samples)
        },
        functions={name: sum(values) / len(values) for name, values in sums.items()},
        unscored=sum(not isinstance(score, Scored) for group in groups for score in group),
        seconds=seconds,
        at_seconds=time.time(),
    )
