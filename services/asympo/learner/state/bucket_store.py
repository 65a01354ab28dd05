"""Training states in an object store, with the newest ones on this machine's own disk as well."""

import logging
from collections.abc import Collection
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from asympo.common import errors
from asympo.common.checkpoints import cache
from asympo.common.checkpoints.bucket import Bucket, StoreError
from asympo.common.checkpoints.directory import delete_step, step_names, storage_errors_as_publish_failed
from asympo.common.checkpoints.names import STATE_FILES, StepName, parse_name
from asympo.common.checkpoints.shared import SharedSteps
from asympo.learner.state.decision_files import SharedDecisionFiles
from asympo.learner.state.store import StateStore, TrainingState

logger = logging.getLogger(__name__)


class SharedStateStore(StateStore):
    """As a state store, with the bucket deciding what exists; what is read and missing here is fetched first.

    All ranks share this machine's disk: each writes its own file there, and the first one uploads them all.
    """

    def __init__(
        self, root: Path, run: str, *, bucket: Bucket, process_group: dist.ProcessGroup | None = None
    ) -> None:
        super().__init__(root, run, process_group=process_group)
        self._shared = SharedSteps(bucket, run, kind="train", allowed=STATE_FILES)
        self.decisions = SharedDecisionFiles(bucket, run)

    def read(self, name: str) -> TrainingState:
        """Everything but the tensors; errors.CorruptCheckpoint. The first read brings all of the state."""
        self._bring(name)
        return super().read(name)

    def verify(self, name: str) -> None:
        """Checks the digest of every file of the copy here, fetched again when damaged."""
        self._bring(name)
        try:
            super().verify(name)
        except errors.CorruptCheckpoint as error:
            cache.drop_damaged(self.path / name, error)
            self._bring(name)
            super().verify(name)

    def load(self, name: str, *, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
        """Brings the state once for all ranks, then as in a directory."""
        self._on_coordinator(lambda: self._bring(name))
        return super().load(name, model=model, optimizer=optimizer)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Every tensor of a state, whole, in host memory, all digests verified; errors.CorruptCheckpoint."""
        self._bring(name)
        return super().tensors(name)

    def names(self) -> list[str]:
        """Visible states whose objects all exist with the right sizes, the newest last."""
        return [str(name) for name in self._shared.names() if name.sequence is not None]

    def highest_fence(self) -> int | None:
        """The highest fence in any name, unfinished ones included, or None in an empty store."""
        fences = (self.decisions.highest_fence(), self._shared.highest_fence())
        return max((fence for fence in fences if fence is not None), default=None)

    def take_over(self, fence: int) -> None:
        """From now on nothing that an older fence saves is visible. Raises errors.Fenced, PublishFailed."""
        with storage_errors_as_publish_failed(f"The claim of fence {fence}", self.path):
            self._shared.take_over(fence)
            self.sweep(fence=fence)

    def sweep(self, *, fence: int) -> list[str]:
        """Delete what dead writers left, here and in the bucket; only for the holder of `fence`."""
        return [*super().sweep(fence=fence), *self._shared.sweep(fence=fence)]

    def prune(self, *, keep: int, needed: Collection[str] = ()) -> list[str]:
        """As in a directory; the bucket first, then the copies here. A store that fails: next time."""
        if keep < 1:
            raise ValueError("keep must be at least 1")
        try:
            names = self.names()
            kept = {*names[-keep:], *needed, *self._shared.retained()}
            deleted = [name for name in names if name not in kept]
            self._shared.delete([parsed for name in deleted if (parsed := parse_name(name)) is not None])
        except StoreError as error:
            logger.warning("old training states stay for now: %s", error.strerror)
            return []
        for copy in step_names(self.path):
            if str(copy) not in kept:
                try:
                    delete_step(self.path / str(copy))
                except OSError as error:
                    logger.warning("training state %s could not be deleted: %s", copy, error)
        return deleted

    def retain(self, name: str) -> None:
        """Keep a state for good: no prune deletes it. Raises errors.PublishFailed when storage fails."""
        with storage_errors_as_publish_failed(f"The mark of training state {name}", self.path):
            self._shared.retain(name)

    def _share(self, written: Path, *, name: StepName, manifest: bytes) -> bytes:
        return self._shared.share(name, written, manifest=manifest)

    def _has_sound(self, name: StepName) -> bool:
        path = self.path / str(name)
        if path.exists() and str(name) not in self.names():
            # Copies are made of visible states only: this one was deleted from the bucket by hand.
            delete_step(path)
        return super()._has_sound(name)

    def _bring(self, name: str) -> None:
        parsed = parse_name(name)
        if parsed is None or (self.path / name).exists():
            return
        logger.info("Fetching the training state %s from %s", name, self._shared)
        try:
            cache.bring(self._shared, parsed, self.path, allowed=STATE_FILES)
        except StoreError as error:
            # Whoever asks for a state cannot go on without it.
            raise errors.StorageUnavailable(
                f"The training state {name} cannot be fetched: {error.strerror}."
            ) from error
