"""Joining a run: wait until it exists, and know how it samples."""

import asyncio
import dataclasses
import logging

from asympo.common.errors import BadSetting, NoProgress, RunConfigMismatch
from asympo.common.object_store import ObjectStoreOptions
from asympo.common.rollout_log import RunConfig, RunLog
from asympo.common.rollout_log.broker.calls import Backoff, Calls
from asympo.engines.base import SamplingSettings

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
