"""What an evaluation needs besides a policy: its prompts, its scoring, the prompts' token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asympo.engines.base import SamplingSettings
from asympo.evaluator.config import EvalConfig
from asympo.rewards.progress import RunProgress
from asympo.rewards.scorer import Scorer
from asympo.tasks.base import TaskPrompt, columns_of
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task
from asympo.tasks.render import render_prompt


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An evaluation whose data is read and whose scoring is ready."""

    config: EvalConfig
    task: TaskConfig
    prompts: tuple[TaskPrompt, ...]
    sampling: SamplingSettings
    scorer: Scorer
    progress: RunProgress


@dataclass(frozen=True, kw_only=True)
class Prepared(Chosen):
    """The same with the prompts as the policy is asked."""

    prompt_ids: tuple[tuple[int, ...], ...]


def choose(
    config: EvalConfig,
    *,
    task_of_run: TaskConfig,
    sampling_of_run: SamplingSettings,
    timeout_seconds: float,
    num_workers: int,
    allow_python: bool,
    progress: RunProgress,
) -> Chosen:
    """Reads its data and starts its scoring, which the caller closes. Raises BadSetting in one sentence."""
    task_config = config.task_config(task_of_run)
    task = load_task(task_config)
    prompts = tuple(config.choose(task))
    scorer = Scorer(
        task=task_config,
        timeout_seconds=timeout_seconds,
        num_workers=num_workers,
        allow_python=allow_python,
        columns=columns_of(task),
    )
    return Chosen(
        config=config,
        task=task_config,
        prompts=prompts,
        sampling=config.sampling(sampling_of_run),
        scorer=scorer,
        progress=progress,
    )


def render(chosen: Chosen, tokenizer: Any) -> Prepared:
    """With token ids. Raises BadSetting when a prompt cannot be rendered."""
    ids: Sequence[tuple[int, ...]] = [tuple(render_prompt(each, tokenizer)) for each in chosen.prompts]
    return Prepared(
        config=chosen.config,
        task=chosen.task,
        prompts=chosen.prompts,
        sampling=chosen.sampling,
        scorer=chosen.scorer,
        progress=chosen.progress,
        prompt_ids=tuple(ids),
    )
