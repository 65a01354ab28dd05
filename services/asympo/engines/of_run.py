"""How a run samples, as an engine wants it said."""

import dataclasses

from asympo.common.errors import BadSetting, RunConfigMismatch
from asympo.common.rollout_log import RunConfig
from asympo.engines.base import SamplingSettings


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
