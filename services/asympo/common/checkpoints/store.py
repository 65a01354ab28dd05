"""The policies of one run."""

import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from safetensors import SafetensorError

from asympo.common.checkpoints import directory
from asympo.common.checkpoints.cache import note_use
from asympo.common.checkpoints.digests import Checksum, Span, digest_spans, entries_of, tensor_spans
from asympo.common.checkpoints.manifest import (
    BasePolicy,
    FileEntry,
    Manifest,
    Probe,
    TensorEntry,
    decode_manifest,
    encode_manifest,
)
from asympo.common.checkpoints.names import POLICY_FILES, WEIGHT_FILES, StepName, parse_name
from asympo.common.checkpoints.steps import Checksums, Kind, Steps, ignore, refuse_if_fenced
from asympo.common.checkpoints.verify import read_manifest
from asympo.common.errors import BadModel, CorruptCheckpoint, PublishFailed, UnknownVersion

if TYPE_CHECKING:
    from asympo.common.checkpoints.merge import MergeRoom

log = logging.getLogger(__name__)

T = TypeVar("T")

POLICIES = Kind(
    directory="policy",
    noun="policy",
    allowed=POLICY_FILES,
    decode=decode_manifest,
    passed_over=(CorruptCheckpoint, UnknownVersion),
    weights=WEIGHT_FILES,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRef:
    """A visible policy."""

    step: int
    """Optimizer step."""
    fence: int
    """Fence of the learner that published it."""
    path: Path
    """Its directory, a Hugging Face checkpoint; of an adapter or a difference once it was verified."""
    digest: str
    """Digest of its manifest."""

    @property
    def name(self) -> str:
        """Directory name, unique within the run."""
        return str(StepName(step=self.step, fence=self.fence))


class PolicyStore:
    """Publishes, finds, verifies and prunes the policies of one run. Safe in any thread.

    Directories of adapters lie in a room of this process, in which they are whole, merged into their base;
    those of differences in a room of all services here.
    """

    def __init__(self, steps: Steps[Manifest]) -> None:
        self._steps = steps
        self._merging = threading.RLock()
        self._room: MergeRoom | None = None

    @property
    def path(self) -> Path:
        """Where they lie on this machine: all of them, some without their weights, or copies."""
        return self._steps.path

    @property
    def published_bytes(self) -> int:
        """What the policy that was published last takes where it is shared."""
        return self._steps.sent_bytes

    def publish(
        self,
        *,
        step: int,
        fence: int,
        fill: Callable[[Path], None],
        probe: Probe,
        parent: str | None = None,
        base: PolicyRef | None = None,
    ) -> PolicyRef:
        """Make the files that `fill` writes into the directory it is given visible as the policy of `step`.

        The tensor list is computed from the safetensors files. On any failure nothing is visible and what was
        written is removed. With `base` the files are an adapter for that policy. Raises PublishFailed when
        storage fails, the step exists already under this fence or the probe is not finite, Fenced when a
        higher fence has published, BadModel when `fill` writes files that a policy may not have, and whatever
        else `fill` raises.
        """
        name = StepName(step=step, fence=fence)
        what = f"the policy of step {step}"
        if not all(math.isfinite(sequence.mean_nll) for sequence in probe.sequences):
            raise PublishFailed(f"{what} is not published: the mean NLL of its probe is not finite")
        with directory.storage_errors_as_publish_failed(what, self.path):
            refuse_if_fenced(self.path, fence=fence, highest=self._steps.sealed_fence())
            if (self.path / str(name)).exists():
                raise PublishFailed(f"{what} is already published as {self.path / str(name)}")
            self.sweep(fence=fence)

            def write(temporary: Path) -> PolicyRef:
                try:
                    fill(temporary)
                    described, checksums = _describe(
                        temporary, step=step, fence=fence, probe=probe, parent=parent
                    )
                    if base is not None:
                        described = self._added_to(base, temporary, described)
                    manifest = encode_manifest(described)
                    return self._ref(self._steps.seal(temporary, manifest=manifest, checksums=checksums))
                except BaseException:
                    directory.discard(temporary)
                    raise

            temporary = self._steps.begin(name)
            try:
                return write(temporary)
            except (OSError, SafetensorError, PublishFailed) as error:
                if temporary.parent == self.path:
                    raise
                log.warning("%s is shared whole, as no difference could be made: %s", what, error)
            return write(self._steps.begin(name, is_whole=True))

    def list(self) -> Sequence[PolicyRef]:
        """Policies whose manifest verifies and whose files have the right names and sizes, newest last."""
        return [self._ref(manifest) for manifest in self._manifests()]

    def names(self) -> Sequence[StepName]:
        """Of all policies that are stored, damaged ones among them."""
        return [name for name in self._steps.present() if name.sequence is None]

    def manifest(self, name: StepName) -> Manifest:
        """As it is stored; no file is looked at. Raises CorruptCheckpoint, UnknownVersion."""
        return self._steps.manifest(name)

    def newest(
        self,
        *,
        exclude: Collection[str] = (),
        with_digests: bool = False,
        on_corrupt: Callable[[StepName], None] = ignore,
    ) -> PolicyRef | None:
        """The policy of the highest (fence, step) that verifies, or None.

        `exclude` holds directory names to pass over; those that do not verify are passed over with a warning.
        With digests, every byte of the winner is read; without, only names and sizes are compared.
        `on_corrupt` hears of those that lack a file, or have one of another size.
        """
        for manifest in self._steps.newest_first(exclude=exclude, on_corrupt=on_corrupt):
            ref = self._ref(manifest)
            try:
                if with_digests:
                    self.verify(ref)
            except (CorruptCheckpoint, UnknownVersion) as error:
                log.warning("policy passed over: %s", error)
            else:
                return ref
        return None

    def find(self, *, step: int, fence: int) -> PolicyRef | None:
        """The policy an announcement names, when its manifest verifies; the files are not read."""
        name = StepName(step=step, fence=fence)
        if name not in self._steps.present():
            return None
        try:
            return self._ref(self._steps.manifest(name))
        except (CorruptCheckpoint, UnknownVersion) as error:
            log.warning("policy not found: %s", error)
            return None

    def load_manifest(self, ref: PolicyRef) -> Manifest:
        """The manifest in the directory of `ref`; CorruptCheckpoint when it is another, or damaged."""
        return _same(ref, read_manifest(self.path / ref.name, POLICIES))

    def verify(self, ref: PolicyRef, *, served: PolicyRef | None = None) -> Manifest:
        """The manifest of `ref` once every byte on this machine was checked; CorruptCheckpoint.

        An adapter is merged for that: from then on the directory of `ref` is there. That of `served` does not
        make room for it.
        """
        if served is not None and (self._steps.holds_copies or served.path.parent != self.path):
            note_use(served.path)
        manifest = _same(ref, self._steps.verify(StepName(step=ref.step, fence=ref.fence)))
        self.check_merge(manifest)
        return manifest

    def look(self, name: StepName, *, with_digests: bool) -> Manifest:
        """The manifest of a policy; without digests, only names and sizes are compared.

        Raises CorruptCheckpoint, UnknownVersion.
        """
        if not with_digests:
            return self._steps.complete(name)
        manifest = self._steps.verify(name)
        self.check_merge(manifest)
        return manifest

    def directories(self, ref: PolicyRef) -> Sequence[Path]:
        """What holds a policy by itself, once it was verified: with the base of an adapter."""
        base = self.load_manifest(ref).base
        return [ref.path] if base is None else [self._base(base, of=ref.name)[0], self.path / ref.name]

    def check_merge(self, manifest: Manifest, *, adapter: Path | None = None) -> None:
        """Merges an adapter whose files were checked; CorruptCheckpoint unless that gives what it should.

        `adapter` is a directory with other copies of the files.
        """
        if manifest.base is not None:
            base = manifest.base
            self._of_whole_base(base, lambda: self._merge(manifest, base, adapter))

    def _of_whole_base(self, base: BasePolicy, made: Callable[[], T]) -> T:
        """A second time where our copy of the base was damaged: verified, it is brought again."""
        try:
            return made()
        except CorruptCheckpoint:
            if not self._is_whole(base):
                raise
            return made()

    def _is_whole(self, base: BasePolicy) -> bool:
        name = parse_name(base.name)
        try:
            return name is not None and self._steps.verify(name).digest == base.digest
        except CorruptCheckpoint:
            return False

    def _merge(self, manifest: Manifest, base: BasePolicy, adapter: Path | None) -> None:
        name = str(manifest.name)
        path, base_manifest = self._base(base, of=name)
        with self._merging:
            self._merged.merge(path, base_manifest, adapter or self.path / name, manifest)

    def highest_fence(self) -> int | None:
        """The highest fence in any name, damaged ones included, or None in an empty store."""
        return self._steps.highest_fence()

    def take_over(self, fence: int) -> None:
        """From now on nothing more of older fences is visible. Raises Fenced, PublishFailed."""
        with directory.storage_errors_as_publish_failed(f"the claim of fence {fence}", self.path):
            self._steps.take_over(fence)
            self.sweep(fence=fence)

    def sweep(self, *, fence: int) -> Sequence[str]:
        """Delete what dead writers left behind; only for the holder of `fence`. Returns their names."""
        return self._steps.sweep(fence=fence)

    def prune(
        self, *, keep: int, is_in_use: Callable[[PolicyRef], bool] = lambda ref: False
    ) -> Sequence[PolicyRef]:
        """Delete all but the `keep` newest policies, those in use and bases of adapters.

        `is_in_use` is asked right before each deletion, so a claim made meanwhile still counts.
        Directories that do not verify and sort below the oldest kept one are deleted too. Returns the deleted
        policies; what cannot be deleted is logged and tried again next time.
        """
        if keep < 1:
            raise ValueError("keep must be at least 1")
        deleted: list[PolicyRef] = []
        try:
            found = self._manifests()
            bases = {manifest.base.name for manifest in found if manifest.base is not None}
            # The newest first: older ones may be needed to read it.
            for manifest in reversed(found[:-keep]):
                ref = self._ref(manifest)
                if ref.name not in bases and not is_in_use(ref) and self._steps.delete(manifest.name):
                    deleted.append(ref)
            verified = {manifest.name for manifest in found}
            for name in self._steps.present():
                is_old = bool(found) and name.rank < found[-keep:][0].name.rank
                if is_old and name not in verified and str(name) not in bases and self._is_damaged(name):
                    self._steps.delete(name)
        except OSError as error:
            where, why = error.filename or self._steps, error.strerror or error
            log.warning("old policies stay for now, as %s fails: %s", where, why)
        return deleted[::-1]

    def _is_damaged(self, name: StepName) -> bool:
        """Rather than of a later release, or on a disk that could not be read for a moment."""
        try:
            self._steps.complete(name)
        except CorruptCheckpoint as error:
            cause = error.__cause__
            return not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError)
        except UnknownVersion:
            return False
        return False

    def _manifests(self) -> Sequence[Manifest]:
        return [*self._steps.newest_first()][::-1]

    def _ref(self, manifest: Manifest) -> PolicyRef:
        name = manifest.name
        path = self._steps.place(name) if manifest.base is None else self._merged.path / str(name)
        return PolicyRef(step=manifest.step, fence=manifest.fence, path=path, digest=manifest.digest)

    @property
    def _merged(self) -> "MergeRoom":
        from asympo.common.checkpoints.merge import MergeRoom

        with self._merging:
            self._room = self._room or MergeRoom()
            return self._room

    def _base(self, base: BasePolicy, *, of: str) -> tuple[Path, Manifest]:
        """The directory and the manifest of the policy that an adapter is added to; CorruptCheckpoint."""
        name = parse_name(base.name)
        if name is None:
            raise CorruptCheckpoint(f"{of} names the base {base.name}, which is no policy")
        try:
            path = self._steps.bring(name)
            manifest = read_manifest(path, POLICIES)
        except CorruptCheckpoint as error:
            raise CorruptCheckpoint(f"the base of {of} cannot be had: {error}") from error
        if manifest.digest != base.digest or manifest.base is not None:
            raise CorruptCheckpoint(f"{of} is an adapter for another base than {path}")
        return path, manifest

    def _added_to(self, base: PolicyRef, adapter: Path, described: Manifest) -> Manifest:
        from asympo.common.checkpoints.merge import merged_entries

        held = BasePolicy(name=base.name, digest=base.digest)

        def merged() -> tuple[TensorEntry, ...]:
            return merged_entries(*self._base(held, of=f"step {described.step}"), adapter)

        tensors = self._of_whole_base(held, merged)
        return dataclasses.replace(described, kind="adapter", base=held, tensors=tensors)


def _describe(
    path: Path, *, step: int, fence: int, probe: Probe, parent: str | None
) -> tuple[Manifest, Checksums]:
    try:
        names = directory.check_files(path, allowed=lambda name: POLICY_FILES.fullmatch(name) is not None)
        weights = [path / name for name in names if name.endswith(".safetensors")]
        tensors = [tensor for weight in weights for tensor in tensor_spans(weight)]
        # One pass over files and tensors together keeps every core busy to the end.
        files = [Span(path=path / name, offset=0, size=(path / name).stat().st_size) for name in names]
        checksums = {span: Checksum() for span in files}
        digests = digest_spans([*files, *(tensor.span for tensor in tensors)], checksums=checksums)
        entries = entries_of(tensors, digests[len(files) :])
    except CorruptCheckpoint as error:
        raise BadModel(f"the policy of step {step} cannot be published: {error}") from error
    if not tensors:
        raise BadModel(f"the policy of step {step} cannot be published: it has no safetensors weights")
    manifest = Manifest(
        step=step,
        fence=fence,
        parent=parent,
        files=tuple(
            FileEntry(name=span.path.name, size=span.size, sha256=digest)
            for span, digest in zip(files, digests, strict=False)
        ),
        tensors=entries,
        probe=probe,
    )
    return manifest, {span.path.name: checksum.hexdigest() for span, checksum in checksums.items()}


def _same(ref: PolicyRef, manifest: Manifest) -> Manifest:
    if manifest.digest != ref.digest:
        raise CorruptCheckpoint(f"{ref.path} does not hold the manifest that was announced")
    return manifest
