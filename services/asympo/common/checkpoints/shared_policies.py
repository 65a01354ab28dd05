"""The policies of one run in an object store, with copies in a local directory."""

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from asympo.common import errors
from asympo.common.checkpoints import cache
from asympo.common.checkpoints.bucket import Bucket, StoreError
from asympo.common.checkpoints.directory import delete_step, step_names, storage_errors_as_publish_failed
from asympo.common.checkpoints.manifest import Manifest, decode_manifest
from asympo.common.checkpoints.names import POLICY_FILES, StepName
from asympo.common.checkpoints.retention import deletable
from asympo.common.checkpoints.shared import SharedSteps
from asympo.common.checkpoints.store import PolicyRef, PolicyStore
from asympo.common.checkpoints.verify import verify_policy

logger = logging.getLogger(__name__)


class SharedPolicyStore(PolicyStore):
    """As a policy store, with the bucket deciding what exists; `verify` brings what is not here.

    Methods that look also raise StoreError, an OSError, when the store does not answer.
    """

    def __init__(self, root: Path, run: str, *, bucket: Bucket, cached: int) -> None:
        super().__init__(root, run)
        self._shared = SharedSteps(bucket, run, kind="policy", allowed=POLICY_FILES)
        self._cached = cached

    def list(self) -> Sequence[PolicyRef]:
        """Visible policies whose objects all exist with the right sizes, newest last."""
        return [self._ref(manifest) for manifest in self._manifests()]

    def newest(self, *, exclude: Collection[str] = (), with_digests: bool = False) -> PolicyRef | None:
        """The visible policy of the highest (fence, step), or None; with digests, one whose copy is sound."""
        for name in reversed(self._shared.names()):
            if name.sequence is not None or str(name) in exclude:
                continue
            try:
                ref = self._ref(self._manifest(name))
                if with_digests:
                    self.verify(ref)
            except (errors.CorruptCheckpoint, errors.UnknownVersion) as error:
                logger.warning("checkpoint passed over: %s", error)
            else:
                return ref
        return None

    def find(self, *, step: int, fence: int) -> PolicyRef | None:
        """The policy an announcement names, when it is visible."""
        name = StepName(step=step, fence=fence)
        if name not in self._shared.names():
            return None
        try:
            return self._ref(self._manifest(name))
        except (errors.CorruptCheckpoint, errors.UnknownVersion) as error:
            logger.warning("checkpoint not found: %s", error)
            return None

    def verify(self, ref: PolicyRef) -> Manifest:
        """The manifest of `ref` once every byte of a copy here was checked; brings the copy if need be.

        Raises errors.CorruptCheckpoint, and OSError when the store or the disk fails.
        """
        name = StepName(step=ref.step, fence=ref.fence)
        try:
            manifest = verify_policy(ref.path)
        except errors.CorruptCheckpoint as error:
            if ref.path.exists():
                cache.drop_damaged(ref.path, error)
            self._manifest(name, wanted=ref.digest)
            cache.bring(self._shared, name, self.path, allowed=POLICY_FILES)
            manifest = verify_policy(ref.path, with_digests=False)
        if manifest.digest != ref.digest:
            raise errors.CorruptCheckpoint(f"{ref.path} does not hold the manifest that was announced.")
        cache.note_use(ref.path)
        cache.trim(self.path, keep=self._cached)
        return manifest

    def highest_fence(self) -> int | None:
        """The highest fence in any name, unfinished ones included, or None in an empty store."""
        return self._shared.highest_fence()

    def take_over(self, fence: int) -> None:
        """From now on nothing more of older fences is visible. Raises errors.Fenced, PublishFailed."""
        with storage_errors_as_publish_failed(f"The claim of fence {fence}", self.path):
            self._shared.take_over(fence)
            self.sweep(fence=fence)

    def sweep(self, *, fence: int) -> Sequence[str]:
        """Delete what dead writers left, here and in the bucket; only for the holder of `fence`."""
        return [*super().sweep(fence=fence), *self._shared.sweep(fence=fence)]

    def prune(
        self, *, keep: int, is_in_use: Callable[[PolicyRef], bool] = lambda ref: False
    ) -> Sequence[PolicyRef]:
        """Delete all but the `keep` newest policies, those in use and what their deltas are built upon.

        As in a directory: `is_in_use` is asked right before each deletion, and a store that fails is tried
        again next time.
        """
        deleted: list[PolicyRef] = []
        try:
            manifests = self._manifests()
            spare = deletable(manifests, keep=keep, is_in_use=lambda manifest: is_in_use(self._ref(manifest)))
            for ref in map(self._ref, spare):
                if not is_in_use(ref):
                    self._shared.delete([StepName(step=ref.step, fence=ref.fence)])
                    deleted.append(ref)
        except StoreError as error:
            logger.warning("old policies stay for now: %s", error.strerror)
            return deleted
        self._drop_copies(
            kept={self._ref(manifest).name for manifest in manifests} - {ref.name for ref in deleted}
        )
        return deleted

    def _drop_copies(self, *, kept: set[str]) -> None:
        for name in step_names(self.path):
            if str(name) not in kept:
                try:
                    delete_step(self.path / str(name))
                except OSError as error:
                    logger.warning("%s could not be deleted: %s", self.path / str(name), error)

    def _share(self, written: Path, *, name: StepName, manifest: bytes) -> bytes:
        return self._shared.share(name, written, manifest=manifest)

    def _manifests(self) -> Sequence[Manifest]:
        found = []
        for name in self._shared.names():
            if name.sequence is None:
                try:
                    found.append(self._manifest(name))
                except (errors.CorruptCheckpoint, errors.UnknownVersion) as error:
                    logger.warning("checkpoint passed over: %s", error)
        return found

    def _manifest(self, name: StepName, *, wanted: str | None = None) -> Manifest:
        what = f"{self._shared}/{name}"
        manifest = decode_manifest(self._shared.manifest(name).content, what=what)
        if (manifest.step, manifest.fence) != (name.step, name.fence):
            raise errors.CorruptCheckpoint(f"The manifest of {what} is of another step or fence.")
        if wanted is not None and manifest.digest != wanted:
            raise errors.CorruptCheckpoint(f"{what} is not the policy that was announced.")
        return manifest

    def _ref(self, manifest: Manifest) -> PolicyRef:
        name = StepName(step=manifest.step, fence=manifest.fence)
        return PolicyRef(
            step=manifest.step, fence=manifest.fence, path=self.path / str(name), digest=manifest.digest
        )
