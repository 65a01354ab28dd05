"""Whether the disk holds what a run keeps: looked at before anything starts, from sizes on the disk."""

import contextlib
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.common.checkpoints.digests import tensor_spans
from asympo.common.errors import AsympoError, BadModel, BadSetting, CorruptCheckpoint
from asympo.engines.model_files import named_weight_files, weight_files

_STATE_BYTES, _POLICY_BYTES = 12, 2
"""Of one parameter: a state holds it and two numbers of the optimizer in float32, a policy is in bfloat16."""
_BYTES_OF_A_TOKEN = 16
"""In the log: token ids, text, and what the broker adds to them."""
_SMALL_BYTES = 8 * 2**20
"""Settings, metrics, report."""
_NUM_LOGS = 3
_COPIES = 4
"""Of policies that are shared as differences, one that is being written among them."""
_SHARE = 0.1
"""Of its policy that a difference takes: several times what is usual."""


@dataclass(frozen=True, kw_only=True)
class DiskNeed:
    """The most that a run keeps on its disk at one time, in bytes."""

    policies: int
    states: int
    logs: int
    broker: int
    archive: int

    @property
    def total(self) -> int:
        return self.policies + self.states + self.logs + self.broker + self.archive + _SMALL_BYTES


def disk_need(
    settings: Any,
    model: Path,
    *,
    num_generators: int,
    max_log_bytes: int,
    broker_bytes: int,
    max_archive_bytes: int,
) -> DiskNeed:
    shapes = [] if settings.object_store.is_given else _shapes(model)
    base = sum(map(math.prod, shapes))
    lora = settings.lora
    # At most: some matrices have no pair.
    trained = base if lora is None else sum(lora.rank * sum(each) for each in shapes if len(each) == 2)
    total = settings.total_steps or float("inf")
    # One more of each exists while it is written.
    num_policies = min(settings.keep_policies, total // settings.publish_every + 1) + 1
    if lora is None and settings.deltas.keyframe_every > 1:
        num_policies = num_policies // settings.deltas.keyframe_every + 2 + _SHARE * num_policies + _COPIES
    num_states = min(settings.keep_states, total // settings.save_every + 1) + 1
    capacity = (1 + settings.max_staleness) * settings.publish_every * settings.groups_per_step
    group = settings.group_size * settings.sampling.max_tokens * _BYTES_OF_A_TOKEN
    archived = total * settings.groups_per_step * group
    keeps_archive = settings.retain and not settings.object_store.is_given
    return DiskNeed(
        policies=_POLICY_BYTES * (int(num_policies * trained) + (base if lora is not None else 0)),
        states=int(num_states) * _STATE_BYTES * trained,
        logs=2 * max_log_bytes * (_NUM_LOGS + num_generators),
        # Rewritten once it has doubled and is larger than that; both files exist then.
        broker=3 * max(capacity * group, broker_bytes),
        archive=int(min(archived, max_archive_bytes)) if keeps_archive else 0,
    )


def _shapes(model: Path) -> list[tuple[int, ...]]:
    """Of all tensors, as the headers of the files say; no weights are read."""
    try:
        files = weight_files(model)
        if missing := sorted(set(named_weight_files(model)) - {path.name for path in files}):
            raise CorruptCheckpoint(f"{model} lacks {', '.join(missing)}, which its index names")
        # Files of the Hugging Face cache are links.
        return [each.shape for path in files for each in tensor_spans(path.resolve())]
    except CorruptCheckpoint as error:
        raise BadModel(
            f"the model's weights cannot be used: {error}; if it was cloned without Git LFS, git lfs "
            "pull fetches them, else download or copy it again"
        ) from None


def check_disk(directory: Path, need: DiskNeed, *, keep_free_bytes: int) -> None:
    """BadSetting where the volume of the run's directory holds less than what the run may add to it."""
    free = shutil.disk_usage(directory).free
    there = size_of(directory) - (0 if need.archive else size_of(directory / "archive"))
    if free + min(there, need.total) >= need.total + keep_free_bytes:
        return
    raise BadSetting(
        f"{directory} has {_size(free)} free, and the run keeps up to {_size(need.total)} there (policies "
        f"{_size(need.policies)}, training states {_size(need.states)}, logs {_size(need.logs)}, broker "
        f"{_size(need.broker)}, archive {_size(need.archive)}) and leaves {_size(keep_free_bytes)} free: "
        "make room, give another run.directory, or lower learner.keep_policies, learner.keep_states, "
        "run.max_log_mb, broker.rewrite_mb, run.max_archive_gb or run.keep_free_mb"
    )


def check_room_left(directory: Path, *, keep_free_bytes: float, max_archive_bytes: float) -> None:
    """AsympoError where a run that goes on has to stop, as long as it can still stop in order."""
    free = shutil.disk_usage(directory).free
    if free < keep_free_bytes:
        raise AsympoError(
            f"the disk of {directory} has {_size(free)} left (run.keep_free_mb is "
            f"{keep_free_bytes / 1e6:g}): free some"
        )
    archived = size_of(directory / "archive")
    if archived > max_archive_bytes:
        raise AsympoError(
            f"the archive in {directory} has {_size(archived)} (run.max_archive_gb is "
            f"{max_archive_bytes / 1e9:g}): raise it, or go on without learner.retain"
        )


def size_of(directory: Path) -> int:
    """Bytes of the files below; what goes while it is looked at does not count."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size if path.is_file() else 0
    return total


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
