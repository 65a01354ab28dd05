"""The durable training states of one run, such as `step-00000042-f0007-n000000000672`.

Saved and loaded through torch.distributed.checkpoint, so that it can be resharded. Saving is synchronous
and streams from the tensors' own memory. Saving in the background would need a copy of all of it (1.6 GB for
a model of 135M parameters), because the next optimizer step changes weights in place.
"""

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

from asympo.common.archive import PartRef
from asympo.common.checkpoints import directory
from asympo.common.checkpoints.manifest import FileEntry
from asympo.common.checkpoints.names import STATE_FILES, StepName, parse_name
from asympo.common.checkpoints.steps import Kind, Steps, refuse_if_fenced
from asympo.common.checkpoints.verify import verify_step
from asympo.common.errors import (
    AsympoError,
    BadSetting,
    CorruptCheckpoint,
    StorageUnavailable,
)
from asympo.common.rollout_log import KnownRun
from asympo.learner.model.weights import adapter_scale
from asympo.learner.state.dcp import DTYPES, StateReader, StateWriter
from asympo.learner.state.decision_files import DecisionFiles
from asympo.learner.state.manifest import (
    StateManifest,
    StateTensor,
    decode_state_manifest,
    encode_state_manifest,
)
from asympo.learner.state.rng import capture_random_state, restore_random_state
from asympo.learner.state.tensors import (
    BASE_DIGEST,
    allocate_optimizer_state,
    check_scale,
    check_tensors,
    describe_groups,
    training_tensors,
)

log = logging.getLogger(__name__)

_TRAINED_IDS, _STREAKS = "trained_ids.bin", "streaks.bin"
_T = TypeVar("_T")

STATES = Kind(
    directory="train",
    noun="training state",
    allowed=STATE_FILES,
    decode=decode_state_manifest,
    passed_over=(CorruptCheckpoint,),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """All of the training state but the tensors."""

    step: int
    """Optimizer steps made."""
    fence: int
    """Fence of the learner that saved it."""
    sequence: int
    """Log cursor: last sequence number that was trained or passed over."""
    trained_ids: bytes
    """Ids of all trained groups, as TrainedIds.to_bytes() gives them."""
    streaks: bytes = b""
    """Of an order by success, as SuccessOrder.to_bytes() gives them."""
    decisions: dict[str, Any] = field(default_factory=dict)
    """Choices that change arithmetic, made once; JSON values."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Those that the newest step was made with, by name; empty where nobody kept them."""
    counters: dict[str, int | float] = field(default_factory=dict)
    """Totals that metrics continue from."""
    run: KnownRun = field(default_factory=KnownRun)
    """As the broker knew it then."""
    archive: PartRef | None = None
    """Newest part of the archive, which reaches up to `sequence` where groups were retained."""


class StateStore:
    """Saves, finds, loads and prunes the training states of one run.

    With torch.distributed initialised, `save` and `load` are collective: every rank calls them.
    """

    def __init__(
        self,
        steps: Steps[StateManifest],
        *,
        decisions: DecisionFiles,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self._steps = steps
        self._group = process_group
        self.decisions = decisions
        """What the run has decided about its arithmetic lies beside the states."""

    @property
    def path(self) -> Path:
        """Where they lie on this machine: all of them, or copies."""
        return self._steps.path

    def save(self, state: TrainingState, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
        """Make the state durable and return its name, which the commit record keeps.

        One that exists under the same step, fence and sequence is the same state and is not written again.
        On any failure nothing is visible. Raises PublishFailed when storage fails and Fenced
        when a learner with a higher fence has saved.
        """
        name = StepName(step=state.step, fence=state.fence, sequence=state.sequence)
        what = f"the training state of step {state.step}"
        if self._on_coordinator(lambda: self._is_saved(name, what=what)):
            return str(name)
        groups = tuple(describe_groups(model, optimizer))
        tensors = training_tensors(model, optimizer)
        rng = torch.frombuffer(bytearray(capture_random_state()), dtype=torch.uint8)
        tensors[f"rng.{self._rank():05d}"] = rng

        def manifest(files: Sequence[FileEntry], stored: Sequence[StateTensor]) -> bytes:
            return encode_state_manifest(
                StateManifest(
                    step=state.step,
                    fence=state.fence,
                    sequence=state.sequence,
                    decisions=state.decisions,
                    settings=state.settings,
                    counters=state.counters,
                    **asdict(state.run),
                    archive=state.archive,
                    optimizer_groups=groups,
                    adapter_scale=adapter_scale(model),
                    torch_version=torch.__version__,
                    world_size=self._world_size(),
                    files=tuple(files),
                    tensors=tuple(stored),
                )
            )

        writer = StateWriter(
            steps=self._steps,
            name=name,
            extra_files={
                _TRAINED_IDS: state.trained_ids,
                **({_STREAKS: state.streaks} if state.streaks else {}),
            },
            make_manifest=manifest,
        )
        with directory.storage_errors_as_publish_failed(what, self.path):
            try:
                with _plain_errors():
                    dcp.save(
                        tensors,
                        storage_writer=writer,
                        planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                        process_group=self._group,
                    )
            except BaseException:
                if writer.temporary is not None:
                    directory.discard(writer.temporary)
                raise
        return str(name)

    def read(self, name: str) -> TrainingState:
        """Everything but the tensors; CorruptCheckpoint. Digests of files here are not checked."""
        path, manifest = self._here(name)
        content, streaks = (path / _TRAINED_IDS).read_bytes(), path / _STREAKS
        return TrainingState(
            step=manifest.step,
            fence=manifest.fence,
            sequence=manifest.sequence,
            trained_ids=content,
            streaks=streaks.read_bytes() if streaks.exists() else b"",
            decisions=manifest.decisions,
            settings=manifest.settings,
            counters=manifest.counters,
            run=_run_of(manifest),
            archive=manifest.archive,
        )

    def verify(self, name: str) -> None:
        """Checks the digest of every file; CorruptCheckpoint. Reads all of them."""
        with _fetching(name):
            self._steps.verify(_parsed(name))

    def load(self, name: str, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
        """Verify all digests, then put weights, optimizer and random numbers back in place.

        Raises CorruptCheckpoint when files are damaged (nothing is changed then) and BadSetting
        when the state is of another model or optimizer (the optimizer must not be used then).
        """
        self._on_coordinator(lambda: self.verify(name))
        path, manifest = self._here(name)
        rng_name = f"rng.{self._rank():05d}"
        stored = {tensor.name: tensor for tensor in manifest.tensors if not tensor.name.startswith("rng.")}
        allocate_optimizer_state(model, optimizer, groups=manifest.optimizer_groups, stored=stored)
        tensors = training_tensors(model, optimizer)
        check_tensors(tensors, stored, what=str(path))
        check_scale(model, manifest.adapter_scale, what=str(path))
        base = {name: tensors[name].clone() for name in (BASE_DIGEST,) if name in tensors}
        rng_sizes = {tensor.name: tensor.shape for tensor in manifest.tensors if tensor.name == rng_name}
        if rng_sizes:
            tensors[rng_name] = torch.empty(rng_sizes[rng_name], dtype=torch.uint8)
        self._read_into(tensors, path, manifest)
        if any(not torch.equal(tensors[name], here) for name, here in base.items()):
            raise BadSetting(
                f"{path} holds an adapter whose base is not the model here: give the model and the "
                "lora.base_bits that the run started with; with base_bits, also the same kind of device"
            )
        if rng_sizes and manifest.world_size == self._world_size():
            restore_random_state(tensors[rng_name].numpy().tobytes())
        else:
            log.warning(
                "training state %s was saved by %d ranks, not by %d: random numbers are not restored",
                name,
                manifest.world_size,
                self._world_size(),
            )
        return self.read(name)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Every tensor of a state, whole, in host memory, all digests verified; CorruptCheckpoint."""
        self.verify(name)
        path, manifest = self._here(name)
        tensors = {
            entry.name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype]) for entry in manifest.tensors
        }
        self._read_into(tensors, path, manifest)
        return tensors

    def names(self) -> list[str]:
        """States whose manifest verifies and whose files have the right names and sizes, the newest last."""
        return [str(manifest.name) for manifest in self._steps.newest_first()][::-1]

    def present(self) -> list[str]:
        """All that are stored, damaged ones among them."""
        return [str(name) for name in self._steps.present()]

    def newest(self) -> str | None:
        """The highest (fence, step, sequence), or None; for when no commit record names a state."""
        return next((str(manifest.name) for manifest in self._steps.newest_first()), None)

    def newest_run(self) -> KnownRun:
        """The run that the newest state is of."""
        newest = next(iter(self._steps.newest_first()), None)
        return _run_of(newest) if newest else KnownRun()

    def highest_fence(self) -> int | None:
        """The highest fence in any name, damaged ones included, or None in an empty store."""
        fences = (self.decisions.highest_fence(), self._steps.highest_fence())
        return max((fence for fence in fences if fence is not None), default=None)

    def take_over(self, fence: int) -> None:
        """From now on nothing more of older fences is visible. Raises Fenced, PublishFailed."""
        with directory.storage_errors_as_publish_failed(f"the claim of fence {fence}", self.path):
            self._steps.take_over(fence)
            self.sweep(fence=fence)

    def sweep(self, *, fence: int) -> list[str]:
        """Delete what dead writers left behind; only for the holder of `fence`. Returns the names."""
        return self._steps.sweep(fence=fence)

    def prune(self, *, keep: int, needed: Collection[str] = ()) -> list[str]:
        """Delete what is older than the `keep` newest valid states and not in `needed`; returns the names.

        `needed` must hold the state the last commit names. Retained ones stay as well.
        """
        if keep < 1:
            raise ValueError("keep must be at least 1")
        deleted: list[str] = []
        try:
            kept = self.names()[-keep:]
            spared = {*needed, *self._steps.retained()}
            for name in self._steps.present() if kept else ():
                if str(name) == kept[0]:
                    break
                if str(name) not in spared and self._steps.delete(name):
                    deleted.append(str(name))
        except OSError as error:
            where, why = error.filename or self._steps, error.strerror or error
            log.warning("old training states stay for now, as %s fails: %s", where, why)
        return deleted

    def retain(self, name: str) -> None:
        """Keep a state for good: no prune deletes it. Raises PublishFailed when storage fails."""
        with directory.storage_errors_as_publish_failed(f"the mark of training state {name}", self.path):
            self._steps.retain(_parsed(name))

    def _read_into(self, tensors: dict[str, Tensor], path: Path, manifest: StateManifest) -> None:
        with torch.no_grad(), _plain_errors():
            dcp.load(
                dict(tensors),
                storage_reader=StateReader(path=path, tensors=manifest.tensors),
                planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
                process_group=self._group,
            )

    def _is_saved(self, name: StepName, *, what: str) -> bool:
        with directory.storage_errors_as_publish_failed(what, self.path):
            fences = (self.decisions.sealed_fence(), self._steps.sealed_fence())
            highest = max((fence for fence in fences if fence is not None), default=None)
            refuse_if_fenced(self.path, fence=name.fence, highest=highest)
            self.sweep(fence=name.fence)
            return self._has_sound(name)

    def _has_sound(self, name: StepName) -> bool:
        path = self.path / str(name)
        if not path.exists():
            return False
        try:
            self._steps.verify(name)
        except CorruptCheckpoint as error:
            log.warning("damaged training state is replaced: %s", error)
            if path.exists():
                directory.delete_step(path)
            return False
        return True

    def _here(self, name: str) -> tuple[Path, StateManifest]:
        """The directory on this machine, once names and sizes of its files were checked."""
        with _fetching(name):
            path = self._steps.bring(_parsed(name))
        return path, verify_step(path, STATES, with_digests=False)

    def _rank(self) -> int:
        return dist.get_rank(self._group) if dist.is_initialized() else 0

    def _world_size(self) -> int:
        return dist.get_world_size(self._group) if dist.is_initialized() else 1

    def _on_coordinator(self, action: Callable[[], _T]) -> _T:
        """Run `action` on rank 0 only and give its result, or what it raises, to every rank."""
        if not dist.is_initialized():
            return action()
        outcome: list[Any] = [None, None]
        if self._rank() == 0:
            try:
                outcome[0] = action()
            except AsympoError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[1] is not None:
            raise outcome[1]
        result: _T = outcome[0]
        return result


def _run_of(manifest: StateManifest) -> KnownRun:
    return KnownRun(
        run_id=manifest.run_id, server_id=manifest.server_id, config_digest=manifest.config_digest
    )


def _parsed(name: str) -> StepName:
    parsed = parse_name(name)
    if parsed is None:
        raise CorruptCheckpoint(f"{name!r} is not the name of a training state")
    return parsed


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Whoever asks for a state cannot go on without it."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(
            f"the training state {name} cannot be fetched: {error.strerror or error}"
        ) from error


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the first error of any rank itself: its wrapper is one that `except Exception` does not catch."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        first, _ = next(iter(error.failures.values()))
        raise first from error
