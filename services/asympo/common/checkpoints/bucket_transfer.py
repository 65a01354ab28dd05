"""Files of steps on their way to a bucket and back, whole or as differences."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic

from asympo.common.checkpoints import cache
from asympo.common.checkpoints.bucket import Bucket, NoSuchObject
from asympo.common.checkpoints.bucket_deltas import (
    Attempt,
    Link,
    Objects,
    attempt_of,
    delta_key,
    links_of,
)
from asympo.common.checkpoints.manifest import FileEntry
from asympo.common.checkpoints.steps import Kind, M
from asympo.common.checkpoints.verify import read_manifest, verify_files
from asympo.common.errors import CorruptCheckpoint, UnknownVersion

log = logging.getLogger(__name__)

_MAX_SHARE = 0.5
"""Of the whole file: larger differences cost readers more than they save."""
_Ways = Mapping[str, list[Link] | None]
_CopyOf = Callable[[Attempt], Path | None]


@dataclass(frozen=True, kw_only=True)
class Sent:
    """An attempt at a step whose files are in the bucket."""

    attempt: Attempt
    files: tuple[FileEntry, ...]
    num_links: int
    """Differences in a row, down to whole files."""


class Transfer(Generic[M]):
    """For one kind of step. Methods raise StoreError when the store fails."""

    def __init__(self, path: Path, kind: Kind[M], *, bucket: Bucket, root: str, keyframe_every: int) -> None:
        """Copies lie in `path`, keys begin with `root`; of so many steps in a row the first is whole."""
        self._path = path
        self._kind = kind
        self._bucket = bucket
        self._root = root
        self._keyframe_every = keyframe_every
        self._shared: Sent | None = None

    def send(self, wanted: M, written: Path, *, objects: Objects) -> Sent:
        """Upload the files of a step: those of weights as differences to the one shared last, if that pays.

        Until `note_shared`, the next one is whole: after whatever may have gone wrong.
        """
        attempt, before, num_links = attempt_of(wanted), self._shared, 0
        self._shared = None
        with cache.download_directory(self._path, wanted.name) as room:
            found: dict[str, Path] = {}
            if before is not None and before.num_links + 1 < self._keyframe_every:
                found = self._write_deltas(wanted, written, before=before, room=room, objects=objects)
                num_links = before.num_links + 1 if found else 0
            keys = {}
            for entry in wanted.files:
                if before is not None and entry.name in found:
                    key = delta_key(attempt, entry.name, parent=before.attempt)
                    keys[self._key(attempt, key)] = found[entry.name]
                else:
                    keys[self._key(attempt, f"{attempt.payload}/{entry.name}")] = written / entry.name
            self._bucket.upload(keys)
        return Sent(attempt=attempt, files=wanted.files, num_links=num_links)

    def note_shared(self, sent: Sent) -> None:
        """What was sent is visible: the next step may be a difference to it."""
        self._shared = sent

    def receive(self, found: M, target: Path, *, objects: Objects) -> None:
        """Bring the files of a step into an empty directory, every digest checked.

        Raises NoSuchObject, CorruptCheckpoint.
        """
        ways = {entry.name: links_of(objects, attempt_of(found), entry.name) for entry in found.files}
        try:
            self._fetch(ways, target, copy_of=self._copy_of)
            verify_files(target, found, self._kind, with_digests=True)
        except (CorruptCheckpoint, FileNotFoundError) as error:
            # Copies are shared with others on this machine, who may damage or delete them.
            if all(links is None or len(links) == 1 for links in ways.values()):
                raise
            log.warning("%s is built again without the copies here: %s", found.name, error)
            for path in target.iterdir():
                path.unlink()
            self._fetch(ways, target, copy_of=lambda attempt: None)
            verify_files(target, found, self._kind, with_digests=True)

    def _write_deltas(
        self, wanted: M, written: Path, *, before: Sent, room: Path, objects: Objects
    ) -> dict[str, Path]:
        """By file, in `room`; without those that are better sent whole, and none if a link is missing."""
        # A quarter of a second that only those pay who send or read one.
        from asympo.common.checkpoints.delta import write_delta

        is_weights = self._kind.weights
        files = [entry for entry in wanted.files if is_weights and is_weights.fullmatch(entry.name)]
        earlier = {entry.name: entry for entry in before.files}
        copy = self._copy_of(before.attempt)
        found: dict[str, Path] = {}
        if copy is None or any(links_of(objects, before.attempt, each.name) is None for each in files):
            return found
        for entry in files:
            if entry.name in earlier and write_delta(
                copy / entry.name,
                written / entry.name,
                room / entry.name,
                old_sha256=earlier[entry.name].sha256,
                max_bytes=int(_MAX_SHARE * entry.size),
            ):
                found[entry.name] = room / entry.name
                share = found[entry.name].stat().st_size / entry.size
                log.info("%s of %s is shared in %.2f%% of its bytes", entry.name, wanted.name, 100 * share)
        return found

    def _fetch(self, ways: _Ways, target: Path, *, copy_of: _CopyOf) -> None:
        lost = sorted(file for file, links in ways.items() if not links)
        if lost:
            raise NoSuchObject(f"{self._bucket}/{self._root} lacks {lost[0]}, or what it is a difference to")
        self._download({links[0]: target / file for file, links in ways.items() if links and not links[1:]})
        for file, links in ways.items():
            if links and links[1:]:
                self._rebuild(links, target / file, copy_of=copy_of)

    def _rebuild(self, links: Sequence[Link], target: Path, *, copy_of: _CopyOf) -> None:
        """The file that the links end in, from the newest of them that has a copy here."""
        from asympo.common.checkpoints.delta import apply_delta

        copies = [copy_of(link.of) for link in links]
        start = max((at for at, copy in enumerate(copies) if copy is not None), default=0)
        base, copy = target.with_name(f"{target.name}.whole"), copies[start]
        if copy is None:
            self._download({links[0]: base})
        else:
            base = copy / target.name
        deltas = {link: target.with_name(f"{target.name}.{at}") for at, link in enumerate(links[start + 1 :])}
        self._download(deltas)
        for path in deltas.values():
            out = path.with_name(f"{path.name}.whole")
            apply_delta(base, path, out)
            path.unlink()
            if base.parent == target.parent:
                base.unlink()
            base = out
        base.rename(target)

    def _download(self, wanted: Mapping[Link, Path]) -> None:
        self._bucket.download({self._key(link.of, link.key): path for link, path in wanted.items()})

    def _copy_of(self, attempt: Attempt) -> Path | None:
        """The step's directory here; what is in it may be damaged."""
        path = self._path / str(attempt.name)
        try:
            manifest = read_manifest(path, self._kind)
            verify_files(path, manifest, self._kind, with_digests=False)
        except (CorruptCheckpoint, UnknownVersion):
            return None
        return path if attempt_of(manifest) == attempt else None

    def _key(self, attempt: Attempt, key: str) -> str:
        return f"{self._root}{attempt.name}/{key}"
