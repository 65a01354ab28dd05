"""What a person may ask about the checkpoint tree; returns values, prints nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asympo.common import errors
from asympo.common.checkpoints.directory import directory_names, step_names
from asympo.common.checkpoints.manifest import Manifest, TensorEntry
from asympo.common.checkpoints.names import MANIFEST_NAME, StepName
from asympo.common.checkpoints.store import PolicyStore
from asympo.common.checkpoints.verify import read_policy_manifest, verify_policy


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointReport:
    """One policy directory."""

    path: Path
    """The directory."""
    step: int
    """Optimizer step, from the name."""
    fence: int
    """Fence of its learner, from the name."""
    fault: str | None
    """Why readers pass it over, or None when it verifies."""
    is_newest: bool
    """Whether it is what readers take."""
    manifest: Manifest | None
    """What it says about itself, or None when that is unreadable."""
    published_at_seconds: float | None
    """Unix time of the manifest file; None without one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorChange:
    """A tensor that two checkpoints do not share bit for bit."""

    name: str
    """Tensor name."""
    left: TensorEntry | None
    """In the first checkpoint; None when absent."""
    right: TensorEntry | None
    """In the second checkpoint; None when absent."""

    @property
    def kind(self) -> str:
        """`added`, `removed`, `reshaped` (shape or type differ) or `changed` (bytes differ)."""
        if self.left is None:
            return "added"
        if self.right is None:
            return "removed"
        if (self.left.shape, self.left.dtype) != (self.right.shape, self.right.dtype):
            return "reshaped"
        return "changed"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeChange:
    """A probe sequence that both checkpoints hold."""

    position: int
    """Index in the probe."""
    left_mean_nll: float
    """Under the first checkpoint."""
    right_mean_nll: float
    """Under the second checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointDiff:
    """What differs between two checkpoints, by their manifests alone."""

    left: Manifest
    """The first."""
    right: Manifest
    """The second."""
    is_child: bool
    """Whether the first is the parent the second names."""
    num_same_tensors: int
    """Tensors with the same bytes."""
    tensors: tuple[TensorChange, ...]
    """The others, by name."""
    files: tuple[str, ...]
    """Other files than weights whose bytes differ or that only one has, by name."""
    probes: tuple[ProbeChange, ...]
    """Mean NLL of the shared probe sequences."""


def list_checkpoints(root: Path, run: str, *, with_digests: bool = False) -> Sequence[CheckpointReport]:
    """Every policy directory of a run, the damaged ones included, the newest last.

    Without digests only manifests, names and sizes are checked.
    """
    parent = PolicyStore(root, run).path
    reports = [
        _report(parent, name, with_digests=with_digests)
        for name in step_names(parent)
        if name.sequence is None
    ]
    newest = next((report for report in reversed(reports) if report.fault is None), None)
    return [report if report is not newest else replace(report, is_newest=True) for report in reports]


def list_runs(root: Path) -> Sequence[str]:
    """Names of the runs that have checkpoints under `root`, sorted."""
    return sorted(name for name in directory_names(root) if (root / name / "policy").is_dir())


def verify_checkpoint(path: Path) -> Manifest:
    """The manifest of a policy directory once every byte was checked; errors.CorruptCheckpoint."""
    return verify_policy(path)


def find_checkpoint(root: Path, run: str, *, step: int, fence: int | None = None) -> Path:
    """The directory of `step`, of the highest fence unless told; errors.BadSetting says what exists."""
    parent = PolicyStore(root, run).path
    names = [name for name in step_names(parent) if name.sequence is None]
    matching = [name for name in names if name.step == step and fence in (None, name.fence)]
    if not matching:
        present = ", ".join(str(name) for name in names[-5:]) or "none"
        raise errors.BadSetting(f"{parent} has no policy of step {step}; the newest ones there: {present}.")
    return parent / str(matching[-1])


def diff_checkpoints(left: Path, right: Path) -> CheckpointDiff:
    """What changed between two policies; errors.CorruptCheckpoint when a manifest does not verify."""
    first, second = read_policy_manifest(left), read_policy_manifest(right)
    before = {tensor.name: tensor for tensor in first.tensors}
    after = {tensor.name: tensor for tensor in second.tensors}
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return CheckpointDiff(
        left=first,
        right=second,
        is_child=second.parent == first.digest,
        num_same_tensors=len(before.keys() | after.keys()) - len(changed),
        tensors=tuple(
            TensorChange(name=name, left=before.get(name), right=after.get(name)) for name in changed
        ),
        files=_changed_files(first, second),
        probes=_probes(first, second),
    )


def _report(parent: Path, name: StepName, *, with_digests: bool) -> CheckpointReport:
    path = parent / str(name)
    manifest: Manifest | None = None
    fault: str | None = None
    try:
        manifest = read_policy_manifest(path)
        verify_policy(path, with_digests=with_digests)
    except (errors.CorruptCheckpoint, errors.UnknownVersion) as error:
        fault = str(error)
    try:
        published = (path / MANIFEST_NAME).lstat().st_mtime
    except OSError:
        published = None
    return CheckpointReport(
        path=path,
        step=name.step,
        fence=name.fence,
        fault=fault,
        is_newest=False,
        manifest=manifest,
        published_at_seconds=published,
    )


def _changed_files(left: Manifest, right: Manifest) -> tuple[str, ...]:
    before = {entry.name: entry for entry in left.files if not entry.name.endswith(".safetensors")}
    after = {entry.name: entry for entry in right.files if not entry.name.endswith(".safetensors")}
    return tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))


def _probes(left: Manifest, right: Manifest) -> tuple[ProbeChange, ...]:
    pairs = zip(left.probe.sequences, right.probe.sequences, strict=False)
    return tuple(
        ProbeChange(position=position, left_mean_nll=before.mean_nll, right_mean_nll=after.mean_nll)
        for position, (before, after) in enumerate(pairs)
        if before.token_ids == after.token_ids
    )
