"""Proof that a checkpoint directory is what its manifest says."""

import re
from collections.abc import Sequence
from pathlib import Path

from asympo.common import errors
from asympo.common.checkpoints.digests import Span, digest_spans, open_regular
from asympo.common.checkpoints.directory import check_files
from asympo.common.checkpoints.manifest import FileEntry, Manifest, decode_manifest
from asympo.common.checkpoints.names import MANIFEST_NAME, POLICY_FILES, parse_name

_MAX_MANIFEST_BYTES = 256 << 20


def read_manifest_bytes(path: Path) -> bytes:
    """Content of the manifest in directory `path`; errors.CorruptCheckpoint when there is none."""
    descriptor = open_regular(path / MANIFEST_NAME)
    with open(descriptor, "rb") as file:
        content = file.read(_MAX_MANIFEST_BYTES + 1)
    if len(content) > _MAX_MANIFEST_BYTES:
        raise errors.CorruptCheckpoint(f"The manifest in {path} is larger than {_MAX_MANIFEST_BYTES} bytes.")
    return content


def read_policy_manifest(path: Path) -> Manifest:
    """The manifest of a policy directory, digest checked, and matching the directory's name."""
    manifest = decode_manifest(read_manifest_bytes(path), what=str(path))
    name = parse_name(path.name)
    if name is None or (name.step, name.fence) != (manifest.step, manifest.fence):
        raise errors.CorruptCheckpoint(
            f"The manifest in {path} is of another step, {manifest.step}, or fence, {manifest.fence}."
        )
    return manifest


def verify_policy(path: Path, *, with_digests: bool = True) -> Manifest:
    """The manifest of `path`, once names, sizes and (unless told otherwise) digests of all files match it.

    Raises errors.CorruptCheckpoint. Costs one read of every file; without digests, one stat.
    """
    manifest = read_policy_manifest(path)
    verify_files(path, manifest.files, allowed=POLICY_FILES, with_digests=with_digests)
    return manifest


def verify_files(
    path: Path, entries: Sequence[FileEntry], *, allowed: re.Pattern[str], with_digests: bool
) -> None:
    """Check that `path` holds exactly `entries` and a manifest; errors.CorruptCheckpoint names the fault."""
    present = check_files(
        path, allowed=lambda name: name == MANIFEST_NAME or allowed.fullmatch(name) is not None
    )
    listed = sorted(entry.name for entry in entries)
    if len(set(listed)) != len(listed) or MANIFEST_NAME in listed:
        raise errors.CorruptCheckpoint(f"The manifest in {path} lists a file twice, or itself.")
    for name in listed:
        if allowed.fullmatch(name) is None:
            raise errors.CorruptCheckpoint(
                f"The manifest in {path} lists {name!r}, which a checkpoint may not have."
            )
        if name not in present:
            raise errors.CorruptCheckpoint(f"{path / name} is missing.")
    for name in present:
        if name != MANIFEST_NAME and name not in listed:
            raise errors.CorruptCheckpoint(f"{path / name} is not listed in the manifest.")
    for entry in entries:
        size = (path / entry.name).lstat().st_size
        if size != entry.size:
            raise errors.CorruptCheckpoint(
                f"{path / entry.name} has {size} bytes, its manifest says {entry.size}."
            )
    if with_digests:
        digests = digest_spans([Span(path=path / entry.name, offset=0, size=entry.size) for entry in entries])
        for entry, digest in zip(entries, digests, strict=True):
            if digest != entry.sha256:
                raise errors.CorruptCheckpoint(
                    f"{path / entry.name} does not match the digest in its manifest."
                )
