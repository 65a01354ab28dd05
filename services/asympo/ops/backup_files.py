"""A backup on disk: the broker's keys as lines, files of the run's directory, and a manifest written last."""

import base64
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from asympo.common.checkpoints import directory
from asympo.common.checkpoints.digests import Span, digest_spans
from asympo.common.checkpoints.manifest import FileEntry, decode_sealed, sealed_json
from asympo.common.checkpoints.names import MANIFEST_NAME
from asympo.common.checkpoints.verify import read_manifest_bytes
from asympo.common.errors import BadSetting, CorruptCheckpoint
from asympo.common.foreign.documents import parse_object
from asympo.common.names import is_run_name
from asympo.common.rollout_log import CopiedPiece
from asympo.common.rollout_log.keys import NOUNS
from asympo.common.versions import Format

FORMAT = Format(name="schema_version", newest=1, oldest=1)
BROKER_FILE = "broker.jsonl"
STORAGE = "storage"
"""Folder of the files that belong into the run's directory."""
_TOP_FILES = re.compile(r".*\.(jsonl|json|toml)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*){0,3}")
_CHECKED = ConfigDict(extra="ignore")
_MAX_LINE_BYTES = 64 * 2**20
_ENTRY_ID = re.compile(rb"\d{1,19}-\d{1,19}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BackupManifest:
    """What a backup holds; without it there is none."""

    __pydantic_config__ = _CHECKED
    schema_version: int = FORMAT.newest
    """Layout of the backup."""
    release: str
    """Build that made it."""
    run: str
    at_seconds: float
    """Wall clock."""
    state_name: str | None
    """Training state in it; None before the first one."""
    policy_name: str | None
    """Policy in it; None before the first one."""
    committed_sequence: int
    """What the training state covers."""
    last_sequence: int
    """Newest group of the log in it."""
    num_leases: int
    """Prompts that were being answered: a restore has them answered again."""
    files: tuple[FileEntry, ...]
    """Every file but the manifest, by path."""


_ADAPTER: TypeAdapter[BackupManifest] = TypeAdapter(BackupManifest)


def write_pieces(path: Path, pieces: Iterable[CopiedPiece]) -> None:
    """One line a piece. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        for piece in pieces:
            items = [base64.b64encode(item).decode() for item in piece.items]
            row = {"noun": piece.noun, "kind": piece.kind, "place": piece.place, "items": items}
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


def read_pieces(path: Path) -> Iterator[CopiedPiece]:
    """What was written. Raises CorruptCheckpoint naming the line: digests do not say who wrote it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = parse_object(line, max_bytes=_MAX_LINE_BYTES)
                items = tuple(base64.b64decode(item, validate=True) for item in row["items"])
                piece = CopiedPiece(noun=row["noun"], kind=row["kind"], place=row["place"], items=items)
            except (ValueError, TypeError, KeyError) as error:
                raise CorruptCheckpoint(f"line {number} of {path} is damaged: {error!r}") from None
            if type(piece.noun) is not str or NOUNS.get(piece.noun) != piece.kind:
                raise CorruptCheckpoint(f"line {number} of {path} names a key that no run has")
            if type(piece.place) is not int or not 0 <= piece.place < 2**53 or not _is_whole(piece):
                raise CorruptCheckpoint(
                    f"line {number} of {path} is damaged: these are no items of a {piece.kind}"
                )
            yield piece


def _is_whole(piece: CopiedPiece) -> bool:
    """Whether its items are such as a key of its kind has."""
    items = piece.items
    if piece.kind == "string":
        return len(items) == 1
    if piece.kind == "stream":
        return len(items) >= 3 and len(items) % 2 == 1 and _ENTRY_ID.fullmatch(items[0]) is not None
    if piece.kind == "zset":
        return len(items) > 0 and len(items) % 2 == 0 and all(_is_score(score) for score in items[1::2])
    return len(items) > 0 and (piece.kind != "hash" or len(items) % 2 == 0)


def _is_score(text: bytes) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def is_kept_record(name: str) -> bool:
    """Whether this file at the top of a run's directory is a record, or what the run was started with."""
    return _TOP_FILES.fullmatch(name) is not None and _is_name(name)


def _is_name(name: str) -> bool:
    """Whether a restore takes a file of this name."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def seal(backup: Path, **values: Any) -> BackupManifest:
    """Makes `backup` durable and a backup: digests of all its files, then the manifest.

    Raises BadSetting naming a file that no restore would take, and OSError.
    """
    files = _describe(backup)
    for entry in files:
        if not _is_name(entry.name):
            raise BadSetting(
                f"a file cannot be in a backup under the name {entry.name!r}, which a restore would refuse: "
                "give it a name of letters, digits, '_', '-' and single '.', which begins with a letter or "
                "digit, in at most three folders"
            )
    manifest = BackupManifest(**values, files=files)
    for folder in sorted({(backup / entry.name).parent for entry in files}, reverse=True):
        _flush(folder)
    partial = backup / f"{MANIFEST_NAME}.part"
    partial.write_bytes(sealed_json(_ADAPTER.dump_python(manifest, mode="json")))
    _flush(backup)
    os.replace(partial, backup / MANIFEST_NAME)
    directory.flush_directory(backup)
    return manifest


def open_backup(backup: Path) -> BackupManifest:
    """The manifest, once every byte of the backup was compared with it.

    Raises BadSetting where there is no backup, UnknownVersion, and CorruptCheckpoint naming the file.
    """
    if not (backup / MANIFEST_NAME).is_file():
        raise BadSetting(f"{backup} is not a backup, or was not finished: it has no {MANIFEST_NAME}")
    manifest = decode_sealed(
        read_manifest_bytes(backup), _ADAPTER, layout=FORMAT, what=f"the backup {backup}"
    )
    if not is_run_name(manifest.run):
        raise CorruptCheckpoint(
            f"the manifest of {backup} calls its run {manifest.run!r}, which is not a valid name"
        )
    for entry in manifest.files:
        if not _is_name(entry.name):
            raise CorruptCheckpoint(
                f"the manifest of {backup} names {entry.name!r}, which is not a file of a backup"
            )
    paths = [backup / entry.name for entry in manifest.files]
    for path, entry in zip(paths, manifest.files, strict=True):
        if path.is_symlink() or not path.is_file() or path.stat().st_size != entry.size:
            raise CorruptCheckpoint(f"{path} is missing or not as it was written")
    digests = digest_spans([Span(path=path, offset=0, size=path.stat().st_size) for path in paths])
    for path, entry, digest in zip(paths, manifest.files, digests, strict=True):
        if digest != entry.sha256:
            raise CorruptCheckpoint(f"{path} is damaged: its digest is not the one in the manifest")
    return manifest


def copy_storage(backup: Path, manifest: BackupManifest, target: Path) -> None:
    """The files of the run's directory, durable, into an empty `target`. Raises OSError."""
    for entry in manifest.files:
        parts = PurePosixPath(entry.name).parts
        if parts[0] != STORAGE:
            continue
        path = target.joinpath(*parts[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(backup / entry.name, path)
    for folder in [path for path in target.rglob("*") if path.is_dir()] + [target]:
        _flush(folder)


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    directory.flush_directory(folder)


def _describe(backup: Path) -> tuple[FileEntry, ...]:
    paths = sorted(path for path in backup.rglob("*") if path.is_file())
    digests = digest_spans([Span(path=path, offset=0, size=path.stat().st_size) for path in paths])
    return tuple(
        FileEntry(name=path.relative_to(backup).as_posix(), size=path.stat().st_size, sha256=digest)
        for path, digest in zip(paths, digests, strict=True)
    )
