"""Creating or joining the run, before anything heavy is loaded: generators wait for it."""

import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from asympo.common.context_length import context_length, what_does_not_fit
from asympo.common.errors import BadModel, BadSetting, RunConfigMismatch
from asympo.common.foreign.text import reason_of
from asympo.common.rollout_log import KnownRun, RunConfig, RunLog
from asympo.common.settings import problem_of
from asympo.learner.settings import LearnerSettings, SamplingOptions
from asympo.tasks.config import TaskConfig
from asympo.tasks.lengths import changes, too_long
from asympo.tasks.registry import load_task
from asympo.tasks.render import render_prompt
from asympo.tasks.tokenizer_digest import tokenizer_digest

log = logging.getLogger(__name__)


def read_config(model: str) -> Any:
    """The model's config; raises BadModel with one sentence."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model)
    except Exception as error:
        # Each family's config checks its values with errors of its own.
        raise BadModel(f"the model {model} has no readable config: {reason_of(error)}") from error


def create_run(
    settings: LearnerSettings, run_log: RunLog, tokenizer: Any, *, known: Callable[[], KnownRun]
) -> RunConfig:
    """Writes the run's config, or makes sure that the one there is the same.

    `known` finds the run of the newest training state, asked only where the broker has none. Raises
    RunConfigMismatch naming each difference, BadSetting when the task cannot be loaded or rendered.
    """
    task_config = without_too_long(settings, tokenizer)
    task = load_task(task_config)
    problem = what_does_not_fit(
        read_config(settings.model),
        num_prompt_tokens=len(render_prompt(task.prompt(0), tokenizer)),
        max_tokens=settings.sampling.max_tokens,
    )
    if problem:
        log.warning("%s", problem)
    config = RunConfig(
        run=settings.run,
        group_size=settings.group_size,
        groups_per_step=settings.groups_per_step,
        max_groups_per_step=settings.segment_limit,
        publish_every=settings.publish_every,
        save_every=settings.save_every,
        max_staleness=settings.max_staleness,
        max_generation_staleness=settings.max_generation_staleness,
        lease_seconds=settings.lease_seconds,
        max_lease_seconds=settings.max_lease_seconds,
        max_prompt_failures=settings.max_prompt_failures,
        seed=settings.seed,
        num_prompts=len(task),
        num_epochs=settings.num_epochs,
        model=_model_for_all(settings.model),
        task=task_config.model_dump(mode="json"),
        sampling=settings.sampling.to_run_config(),
        overlong_reward=settings.overlong_reward,
        task_digest=task.digest,
        tokenizer_digest=tokenizer_digest(tokenizer),
    )
    return run_log.state.create_or_join(config, complete=_completed, known=known)


def without_too_long(settings: LearnerSettings, tokenizer: Any) -> TaskConfig:
    """Without prompts that leave no room for a response; says how many, and what a template changes."""
    config = settings.task
    if config.name != "data":
        return config
    task = load_task(config)
    for sentence in changes(task, tokenizer):
        log.warning("%s", sentence)
    context = context_length(read_config(settings.model))
    limit = None if context is None else context - settings.sampling.max_tokens
    found = [] if limit is None else too_long(task, tokenizer, max_prompt_tokens=limit)
    if not found:
        return config
    sentence = (
        f"{len(found)} of {len(task)} prompts are longer than {limit} tokens, the model's context less "
        f"sampling.max_tokens (the longest has {max(length for _, length in found)})"
    )
    if len(found) == len(task) or config.too_long == "refuse":
        raise BadSetting(f"{sentence}: give shorter rows, or set sampling.max_tokens lower")
    log.warning("%s: they are left out", sentence)
    return config.model_copy(update={"left_out": tuple(index for index, _ in found)})


def _completed(stored: RunConfig) -> RunConfig:
    """With options of task and sampling that are new since the run was created, as they were before."""
    try:
        task = TaskConfig(**stored.task).model_dump(mode="json")
        sampling = SamplingOptions(**stored.sampling).to_run_config()
    except ValidationError as error:
        raise RunConfigMismatch(
            f"run {stored.run!r} has an option this build does not know ({problem_of(error)}): use the "
            "build that created it"
        ) from error
    return dataclasses.replace(stored, task=task, sampling=sampling)


def _model_for_all(model: str) -> str:
    """A local path made absolute: processes on this machine have working directories of their own."""
    return os.path.abspath(model) if Path(model).exists() else model
