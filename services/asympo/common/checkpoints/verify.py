"""Proof that a checkpoint directory is what its manifest says."""

from pathlib import Path

from asympo.common.checkpoints.digests import Span, digest_spans, open_regular
from asympo.common.checkpoints.directory import check_files
from asympo.common.checkpoints.names import MANIFEST_NAME, MAX_MANIFEST_BYTES, parse_name
from asympo.common.checkpoints.steps import Kind, M
from asympo.common.errors import CorruptCheckpoint


def read_manifest_bytes(path: Path) -> bytes:
    """Content of the manifest in directory `path`; CorruptCheckpoint when there is none."""
    descriptor = open_regular(path / MANIFEST_NAME)
    with open(descriptor, "rb") as file:
        content = file.read(MAX_MANIFEST_BYTES + 1)
    if len(content) > MAX_MANIFEST_BYTES:
        raise CorruptCheckpoint(f"the manifest in {path} is larger than {MAX_MANIFEST_BYTES} bytes")
    return content


def read_manifest(path: Path, kind: Kind[M]) -> M:
    """The manifest of a step's directory, digest checked, and matching the directory's name."""
    return kind.open(read_manifest_bytes(path), name=parse_name(path.name), what=str(path))


def verify_step(path: Path, kind: Kind[M], *, with_digests: bool = True) -> M:
    """The manifest of `path`, once names, sizes and (unless told otherwise) digests of all files match it.

    Raises CorruptCheckpoint. Costs one read of every file; without digests, one stat.
    """
    manifest = read_manifest(path, kind)
    verify_files(path, manifest, kind, with_digests=with_digests)
    return manifest


def verify_files(path: Path, manifest: M, kind: Kind[M], *, with_digests: bool) -> None:
    """Check that `path` holds exactly the files of `manifest`; CorruptCheckpoint names the fault."""
    present = check_files(
        path, allowed=lambda name: name == MANIFEST_NAME or kind.allowed.fullmatch(name) is not None
    )
    listed = {entry.name for entry in manifest.files}
    for name in sorted(listed.symmetric_difference(present) - {MANIFEST_NAME}):
        fault = "missing" if name in listed else "not listed in the manifest"
        raise CorruptCheckpoint(f"{path / name} is {fault}")
    for entry in manifest.files:
        try:
            size = (path / entry.name).lstat().st_size
        except OSError as error:
            raise CorruptCheckpoint(f"{path / entry.name} cannot be read: {error.strerror}") from error
        if size != entry.size:
            raise CorruptCheckpoint(f"{path / entry.name} has {size} bytes, its manifest says {entry.size}")
    if with_digests:
        spans = [Span(path=path / entry.name, offset=0, size=entry.size) for entry in manifest.files]
        for entry, digest in zip(manifest.files, digest_spans(spans), strict=True):
            if digest != entry.sha256:
                raise CorruptCheckpoint(f"{path / entry.name} does not match the digest in its manifest")
