"""Whether the disk holds what a run keeps: looked at before anything starts, from sizes on the disk."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting

_STATE_BYTES, _POLICY_BYTES = 12, 2
"""Of one parameter: a state holds it and two numbers of the optimizer in float32, a policy is in bfloat16."""
_BYTES_OF_A_TOKEN = 16
"""In the log: token ids, text, and what the broker adds to them."""
_SMALL_BYTES = 8 * 2**20
"""Settings, metrics, report."""
_NUM_LOGS = 3


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """The most that a run keeps on its disk at one time, in bytes."""

    policies: int
    states: int
    logs: int
    broker: int

    @property
    def total(self) -> int:
        return self.policies + self.states + self.logs + self.broker + _SMALL_BYTES


def disk_need(
    settings: Any, model: Path, *, num_generators: int, max_log_bytes: int, broker_bytes: int
) -> DiskNeed:
    """Archives of consumed groups are not in it: they grow with the run, and only where `retain` asks."""
    num_parameters = 0 if settings.object_store.is_given else _num_parameters(model)
    total = settings.total_steps or float("inf")
    # One more of each exists while it is written.
    num_policies = min(settings.keep_policies, total // settings.publish_every + 1) + 1
    num_states = min(settings.keep_states, total // settings.save_every + 1) + 1
    capacity = (1 + settings.max_staleness) * settings.publish_every * settings.groups_per_step
    group = settings.group_size * settings.sampling.max_tokens * _BYTES_OF_A_TOKEN
    return DiskNeed(
        policies=int(num_policies) * _POLICY_BYTES * num_parameters,
        states=int(num_states) * _STATE_BYTES * num_parameters,
        logs=2 * max_log_bytes * (_NUM_LOGS + num_generators),
        # Rewritten once it has doubled and is larger than that; both files exist then.
        broker=3 * max(capacity * group, broker_bytes),
    )


def _num_parameters(model: Path) -> int:
    """As the headers of its files say; no weights are read."""
    total = 0
    for path in model.glob("*.safetensors"):
        with path.open("rb") as weights:
            header = json.loads(weights.read(int.from_bytes(weights.read(8), "little")))
        total += sum(math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__")
    return total


def check_disk(directory: Path, need: DiskNeed, *, keep_free_bytes: int) -> None:
    """BadSetting where the volume of the run's directory holds less than what the run may add to it."""
    free = shutil.disk_usage(directory).free
    files = (path for path in directory.rglob("*") if "archive" not in path.parts)
    there = sum(path.lstat().st_size for path in files if path.is_file())
    if free + min(there, need.total) >= need.total + keep_free_bytes:
        return
    raise BadSetting(
        f"{directory} has {_size(free)} free, and the run keeps up to {_size(need.total)} there (policies "
        f"{_size(need.policies)}, training states {_size(need.states)}, logs {_size(need.logs)}, broker "
        f"{_size(need.broker)}), {_size(keep_free_bytes)} besides: free some, give another run.directory, or "
        "lower learner.keep_policies, learner.keep_states, run.max_log_mb, broker.rewrite_mb or "
        "run.keep_free_mb"
    )


def free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
