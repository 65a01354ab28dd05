"""Joining a run: wait until it exists, then make sure that this machine would do what the run says."""

import asyncio
import dataclasses
import logging
from typing import Any

from pydantic import ValidationError

from asympo.common.errors import BadSetting, NoProgress, RunConfigMismatch
from asympo.common.object_store import ObjectStoreOptions
from asympo.common.rollout_log import RunConfig, RunLog
from asympo.engines.base import SamplingSettings
from asympo.generator.calls import Backoff, Calls
from asympo.tasks.base import Task
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task
from asympo.tasks.render import render_prompt
from asympo.tasks.tokenizer_digest import tokenizer_digest

log = logging.getLogger(__name__)

REMIND_EVERY = 15
"""A line in the log after this many waits for a run that nobody has created."""


async def wait_for_config(run_log: RunLog, calls: Calls, *, wait_seconds: float) -> RunConfig:
    """The run's config, however long its learner takes to create it.

    Raises RunConfigMismatch when another version of ASymPO created it.
    """
    num_waits = 0
    while True:
        try:
            return await calls.until_answered(run_log.state.wait_for_config, wait_seconds)
        except NoProgress:
            if num_waits % REMIND_EVERY == 0:
                log.info("Run %s does not exist yet: waiting for its learner", run_log.run)
            num_waits += 1


async def wait_for_storage(options: ObjectStoreOptions, calls: Calls) -> None:
    """Returns once the object store, if one is used, lists what is in it, however long that takes.

    Raises BadSetting when it refuses.
    """
    if not options.is_given:
        return
    from asympo.common.checkpoints.bucket import Bucket, StoreError
    from asympo.common.checkpoints.bucket_check import try_reading

    bucket, backoff = Bucket(options), Backoff()
    while True:
        try:
            log.info("Object store: %s", await calls.run(try_reading, bucket))
            return
        except StoreError as error:
            log.warning("Waiting for the object store: %s", error.strerror)
            await asyncio.sleep(backoff.next_seconds())


def task_config_of(config: RunConfig, *, task_path: str | None) -> TaskConfig:
    """The run's task as settings of ours, its file looked for at `task_path` if given."""
    values = dict(config.task)
    if task_path is not None:
        values["path"] = task_path
    try:
        return TaskConfig(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise RunConfigMismatch(
            f"run {config.run!r} asks for a task this build does not know (task.{name}: {first['msg']}): "
            "use the build that created it"
        ) from error


def load_same_task(config: RunConfig, task_config: TaskConfig) -> Task:
    """The task, once its content is known to be what the run was created with."""
    task = load_task(task_config)
    _compare(config, "task_digest", task.digest, "give this machine the same task file and library versions")
    _compare(config, "num_prompts", len(task), "give this machine the same task file and library versions")
    return task


def check_tokenizer(config: RunConfig, tokenizer: Any, task: Task) -> None:
    """Raises RunConfigMismatch when ids would differ, BadSetting when the task cannot be rendered at all."""
    _compare(
        config,
        "tokenizer_digest",
        tokenizer_digest(tokenizer),
        "use the model and tokenizer that the run was created with",
    )
    render_prompt(task.prompt(0), tokenizer)


def sampling_of(config: RunConfig) -> SamplingSettings:
    """How the run samples, as an engine wants it said."""
    known = {field.name for field in dataclasses.fields(SamplingSettings)}
    unknown = sorted(set(config.sampling) - known)
    if unknown:
        raise RunConfigMismatch(
            f"run {config.run!r} samples with settings this build does not know ({', '.join(unknown)}): "
            "use the build that created it"
        )
    values = {name: value for name, value in config.sampling.items() if value is not None}
    if "stop" in values:
        values["stop"] = tuple(values["stop"])
    try:
        return SamplingSettings(**values)
    except (TypeError, ValueError) as error:
        raise BadSetting(f"the sampling settings of run {config.run!r} are not usable: {error}") from error


def _compare(config: RunConfig, name: str, ours: Any, remedy: str) -> None:
    stored = getattr(config, name)
    if stored and stored != ours:
        raise RunConfigMismatch(
            f"run {config.run!r} was created with {name} {_short(stored)}, here it is {_short(ours)}: "
            f"{remedy}"
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 16 else text
