"""The policies of one run on shared storage: `<root>/<run>/policy/step-00000042-f0007/`."""

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asympo.common import errors
from asympo.common.checkpoints import directory
from asympo.common.checkpoints.digests import Span, digest_spans, entries_of, tensor_spans
from asympo.common.checkpoints.manifest import FileEntry, Manifest, Probe, decode_manifest, encode_manifest
from asympo.common.checkpoints.names import POLICY_FILES, StepName
from asympo.common.checkpoints.retention import deletable
from asympo.common.checkpoints.verify import read_policy_manifest, verify_policy
from asympo.common.names import check_run_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRef:
    """A visible policy."""

    step: int
    """Optimizer step."""
    fence: int
    """Fence of the learner that published it."""
    path: Path
    """Its directory, loadable as a Hugging Face checkpoint."""
    digest: str
    """Digest of its manifest."""

    @property
    def name(self) -> str:
        """Directory name, unique within the run."""
        return str(StepName(step=self.step, fence=self.fence))


class PolicyStore:
    """Publishes, finds, verifies and prunes the policies of one run. Stateless and safe in any thread."""

    def __init__(self, root: Path, run: str) -> None:
        self.path = Path(root) / check_run_name(run) / "policy"

    def publish(
        self,
        *,
        step: int,
        fence: int,
        fill: Callable[[Path], None],
        probe: Probe,
        parent: str | None = None,
        kind: Literal["full", "delta"] = "full",
    ) -> PolicyRef:
        """Make the files that `fill` writes into the directory it is given visible as the policy of `step`.

        The tensor list is computed from the safetensors files. On any failure nothing is visible and what was
        written is removed. Raises errors.PublishFailed when storage fails, the step exists already under this
        fence or the probe is not finite, errors.Fenced when a higher fence has published, errors.BadModel
        when `fill` writes files that a policy may not have, and whatever else `fill` raises.
        """
        name = StepName(step=step, fence=fence)
        what = f"The policy of step {step}"
        if not all(math.isfinite(sequence.mean_nll) for sequence in probe.sequences):
            raise errors.PublishFailed(f"{what} is not published: the mean NLL of its probe is not finite.")
        with directory.storage_errors_as_publish_failed(what, self.path):
            self._refuse_if_fenced(fence)
            if (self.path / str(name)).exists():
                raise errors.PublishFailed(f"{what} is already published as {self.path / str(name)}.")
            self.sweep(fence=fence)
            temporary = directory.create_temporary(self.path, name)
            try:
                fill(temporary)
                content = encode_manifest(
                    _describe(temporary, step=step, fence=fence, probe=probe, parent=parent, kind=kind)
                )
                content = self._share(temporary, name=name, manifest=content)
                final = directory.seal(temporary, manifest=content)
            except BaseException:
                directory.discard(temporary)
                raise
        return _ref(final, decode_manifest(content, what=str(final)))

    def list(self) -> Sequence[PolicyRef]:
        """Policies whose manifest verifies and whose files have the right names and sizes, newest last."""
        return [_ref(path, manifest) for path, manifest in _verifying(self.path)]

    def newest(self, *, exclude: Collection[str] = (), with_digests: bool = False) -> PolicyRef | None:
        """The policy of the highest (fence, step) that verifies, or None.

        `exclude` holds directory names to pass over; those that do not verify are passed over with a warning.
        With digests, every byte of the winner is read; without, only names and sizes are compared.
        """
        for name in reversed(directory.step_names(self.path)):
            if name.sequence is not None or str(name) in exclude:
                continue
            path = self.path / str(name)
            try:
                return _ref(path, verify_policy(path, with_digests=with_digests))
            except (errors.CorruptCheckpoint, errors.UnknownVersion) as error:
                logger.warning("checkpoint passed over: %s", error)
        return None

    def find(self, *, step: int, fence: int) -> PolicyRef | None:
        """The policy an announcement names, when its manifest verifies; the files are not read."""
        path = self.path / str(StepName(step=step, fence=fence))
        try:
            return _ref(path, read_policy_manifest(path))
        except (errors.CorruptCheckpoint, errors.UnknownVersion) as error:
            logger.warning("checkpoint not found: %s", error)
            return None

    def load_manifest(self, ref: PolicyRef) -> Manifest:
        """The manifest of `ref`; errors.CorruptCheckpoint when it is gone, damaged or another one."""
        return _same(ref, read_policy_manifest(ref.path))

    def verify(self, ref: PolicyRef) -> Manifest:
        """The manifest of `ref` once every byte was checked; errors.CorruptCheckpoint otherwise."""
        return _same(ref, verify_policy(ref.path))

    def highest_fence(self) -> int | None:
        """The highest fence in any directory name, damaged ones included, or None in an empty store."""
        names = directory.step_names(self.path)
        return names[-1].fence if names else None

    def sweep(self, *, fence: int) -> Sequence[str]:
        """Delete temporary directories of dead writers; only for the holder of `fence`. Returns names."""
        return directory.sweep(self.path, fence=fence)

    def prune(
        self, *, keep: int, is_in_use: Callable[[PolicyRef], bool] = lambda ref: False
    ) -> Sequence[PolicyRef]:
        """Delete all but the `keep` newest policies, those in use, and what their deltas are built upon.

        `is_in_use` is asked right before each deletion as well, so a lease taken meanwhile still counts.
        Directories that do not verify and sort below the oldest kept one are deleted too. Returns the deleted
        policies; what cannot be deleted is logged and tried again next time.
        """
        found = _verifying(self.path)
        refs = {manifest.digest: _ref(path, manifest) for path, manifest in found}
        spare = deletable(
            [manifest for _, manifest in found],
            keep=keep,
            is_in_use=lambda manifest: is_in_use(refs[manifest.digest]),
        )
        deleted = []
        for manifest in spare:
            ref = refs[manifest.digest]
            if not is_in_use(ref) and _delete(ref.path):
                deleted.append(ref)
        _delete_damaged(self.path, kept=found[-keep:], verified={path for path, _ in found})
        return deleted

    def take_over(self, fence: int) -> None:
        """Nothing: where directories are renamed, names with a higher fence are enough."""

    def _share(self, written: Path, *, name: StepName, manifest: bytes) -> bytes:
        """The manifest as it becomes visible; who shares by other means than the directory does so here."""
        return manifest

    def _refuse_if_fenced(self, fence: int) -> None:
        highest = self.highest_fence()
        if highest is not None and highest > fence:
            raise errors.Fenced(
                f"{self.path} holds policies of fence {highest} and this learner has fence {fence}:"
                " another learner owns the run, or an earlier run of the same name left them there."
            )


def _verifying(parent: Path) -> list[tuple[Path, Manifest]]:
    found = []
    for name in directory.step_names(parent):
        if name.sequence is not None:
            continue
        path = parent / str(name)
        try:
            found.append((path, verify_policy(path, with_digests=False)))
        except (errors.CorruptCheckpoint, errors.UnknownVersion) as error:
            logger.warning("checkpoint passed over: %s", error)
    return found


def _delete_damaged(parent: Path, *, kept: list[tuple[Path, Manifest]], verified: set[Path]) -> None:
    if not kept:
        return
    oldest = StepName(step=kept[0][1].step, fence=kept[0][1].fence)
    for name in directory.step_names(parent):
        if name.rank < oldest.rank and parent / str(name) not in verified:
            _delete(parent / str(name))


def _describe(
    path: Path, *, step: int, fence: int, probe: Probe, parent: str | None, kind: Literal["full", "delta"]
) -> Manifest:
    try:
        names = directory.check_files(path, allowed=lambda name: POLICY_FILES.fullmatch(name) is not None)
        weights = [path / name for name in names if name.endswith(".safetensors")]
        tensors = [tensor for weight in weights for tensor in tensor_spans(weight)]
        # One pass over files and tensors together keeps every core busy to the end.
        files = [Span(path=path / name, offset=0, size=(path / name).stat().st_size) for name in names]
        digests = digest_spans([*files, *(tensor.span for tensor in tensors)])
        entries = entries_of(tensors, digests[len(files) :])
    except errors.CorruptCheckpoint as error:
        raise errors.BadModel(f"The policy of step {step} cannot be published: {error}") from error
    if not tensors:
        raise errors.BadModel(
            f"The policy of step {step} cannot be published: it has no safetensors weights."
        )
    return Manifest(
        step=step,
        fence=fence,
        kind=kind,
        parent=parent,
        files=tuple(
            FileEntry(name=span.path.name, size=span.size, sha256=digest)
            for span, digest in zip(files, digests, strict=False)
        ),
        tensors=entries,
        probe=probe,
    )


def _ref(path: Path, manifest: Manifest) -> PolicyRef:
    return PolicyRef(step=manifest.step, fence=manifest.fence, path=path, digest=manifest.digest)


def _same(ref: PolicyRef, manifest: Manifest) -> Manifest:
    if manifest.digest != ref.digest:
        raise errors.CorruptCheckpoint(f"{ref.path} does not hold the manifest that was announced.")
    return manifest


def _delete(path: Path) -> bool:
    try:
        directory.delete_step(path)
    except OSError as error:
        logger.warning("checkpoint %s could not be deleted: %s", path, error)
        return False
    return True
