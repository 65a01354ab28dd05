"""Files of steps on their way to where they are shared and back, whole or as differences."""

import errno
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol

from asympo.common.checkpoints.cache import StepCopies, download_directory
from asympo.common.checkpoints.links import Attempt, Link, attempt_of, delta_name, links_of
from asympo.common.checkpoints.manifest import FileEntry
from asympo.common.checkpoints.steps import Checksums, Kind, M
from asympo.common.checkpoints.verify import verify_files
from asympo.common.errors import CorruptCheckpoint

log = logging.getLogger(__name__)

_MAX_SHARE = 0.5
"""Of the whole file: larger differences cost readers more than they save."""
_MIN_BYTES = 1 << 16
"""Of a file beside the weights, such as a tokenizer, that is not stored again while it is the same."""
_Ways = Mapping[str, list[Link] | None]
_CopyOf = Callable[[Attempt], Path | None]


class Shelf(Protocol):
    """Where the files of steps are shared, as one look at it shows them."""

    def files_of(self, attempt: Attempt) -> Mapping[str, int]:
        """Bytes of what is stored of it, by name; empty without one."""

    def whole(self, attempt: Attempt) -> Path | None:
        """Its directory, if it can be read where it is and no file there is a difference."""

    def fetch(self, wanted: Mapping[Link, Path]) -> None:
        """Copies of stored files, as new ones. Raises FileNotFoundError or NoSuchObject where one is gone."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """An attempt at a step whose files are to be shared, or are."""

    attempt: Attempt
    files: tuple[FileEntry, ...]
    checksums: Checksums
    """What its copy here is held against before anything is built on it."""
    num_links: int
    """Differences in a row, down to whole files."""
    num_bytes: int
    """Of what is stored, the manifest aside."""


class Transfer(Generic[M]):
    """For one kind of step. Methods raise OSError when storage fails."""

    def __init__(self, kind: Kind[M], *, keyframe_every: int) -> None:
        """Of so many steps in a row the first is whole."""
        self._kind = kind
        self._keyframe_every = keyframe_every
        self._shared: Sent | None = None
        self.sent_bytes = 0
        """Of what was shared last."""

    @property
    def may_differ(self) -> bool:
        """Whether the next step may be a difference to the one shared last."""
        return self._shared is not None and self._shared.num_links + 1 < self._keyframe_every

    @contextmanager
    def ready(
        self, wanted: M, written: Path, checksums: Checksums, *, shelf: Shelf, copies: StepCopies[M]
    ) -> Iterator[tuple[Sent, dict[str, Path]]]:
        """What to store of a step, by name: weights as differences to the one shared last, if that pays.

        Until `note_shared`, the next one is whole: after whatever may have gone wrong.
        """
        attempt, before, num_links = attempt_of(wanted), self._shared, 0
        is_tried = self.may_differ
        self._shared = None
        with download_directory(copies.path, wanted.name) as room:
            deltas: dict[str, Path] = {}
            if before is not None and is_tried:
                try:
                    deltas = self._write_deltas(wanted, written, before, room, shelf, copies)
                except (OSError, CorruptCheckpoint) as error:
                    log.warning("%s is shared whole: %s", wanted.name, error)
                num_links = before.num_links + 1 if deltas else 0
            stored = {}
            for entry in wanted.files:
                if before is not None and entry.name in deltas:
                    stored[delta_name(entry.name, parent=before.attempt)] = deltas[entry.name]
                else:
                    stored[entry.name] = written / entry.name
            num_bytes = sum(path.stat().st_size for path in stored.values())
            sent = Sent(
                attempt=attempt,
                files=wanted.files,
                checksums=checksums,
                num_links=num_links,
                num_bytes=num_bytes,
            )
            yield sent, stored

    def note_shared(self, sent: Sent | None) -> None:
        """What was sent is visible: the next step may be a difference to it. None: it must be whole."""
        self._shared = sent
        if sent is not None:
            self.sent_bytes = sent.num_bytes

    def receive(self, found: M, target: Path, *, shelf: Shelf, copies: StepCopies[M]) -> None:
        """Bring the files of a step into an empty directory, every digest checked.

        Raises FileNotFoundError or NoSuchObject where one is gone, CorruptCheckpoint.
        """
        ways = {entry.name: links_of(shelf.files_of, attempt_of(found), entry.name) for entry in found.files}
        try:
            _bring(ways, target, shelf, copy_of=lambda attempt: copies.of(attempt) or shelf.whole(attempt))
            verify_files(target, found, self._kind, with_digests=True)
        except (CorruptCheckpoint, FileNotFoundError) as error:
            # Copies are shared with others on this machine, who may damage or delete them.
            if all(links is None or len(links) == 1 for links in ways.values()):
                raise
            log.warning("%s is built again without the copies here: %s", found.name, error)
            for path in target.iterdir():
                path.unlink()
            _bring(ways, target, shelf, copy_of=lambda attempt: None)
            verify_files(target, found, self._kind, with_digests=True)

    def _write_deltas(
        self, wanted: M, written: Path, before: Sent, room: Path, shelf: Shelf, copies: StepCopies[M]
    ) -> dict[str, Path]:
        """By file, in `room`; without those that are better sent whole, and none if a link is missing."""
        # A quarter of a second that only those pay who send or read one.
        from asympo.common.checkpoints.delta import write_delta

        pattern = self._kind.weights
        weights = [entry for entry in wanted.files if pattern and pattern.fullmatch(entry.name)]
        earlier = {entry.name: entry for entry in before.files}
        copy = copies.of(before.attempt) or shelf.whole(before.attempt)
        found: dict[str, Path] = {}
        if copy is None or any(
            links_of(shelf.files_of, before.attempt, each.name) is None for each in before.files
        ):
            return found
        unchanged = [
            entry
            for entry in wanted.files
            if entry not in weights and entry.size >= _MIN_BYTES and entry == earlier.get(entry.name)
        ]
        for entry in (*weights, *unchanged):
            # What is beside weights that are whole had better be whole as well.
            is_tried = entry.name in before.checksums and (entry in weights or bool(found))
            if is_tried and write_delta(
                copy / entry.name,
                written / entry.name,
                room / entry.name,
                old_checksum=before.checksums[entry.name],
                max_bytes=int(_MAX_SHARE * entry.size),
            ):
                found[entry.name] = room / entry.name
                share = found[entry.name].stat().st_size / entry.size
                log.info("%s of %s is shared in %.2f%% of its bytes", entry.name, wanted.name, 100 * share)
        return found


def _bring(ways: _Ways, target: Path, shelf: Shelf, *, copy_of: _CopyOf) -> None:
    lost = sorted(file for file, links in ways.items() if not links)
    if lost:
        raise FileNotFoundError(
            errno.ENOENT, f"{lost[0]} is gone, or what it is a difference to", str(target)
        )
    shelf.fetch({links[0]: target / file for file, links in ways.items() if links and not links[1:]})
    for file, links in ways.items():
        if links and links[1:]:
            _rebuild(links, target / file, shelf, copy_of=copy_of)


def _rebuild(links: Sequence[Link], target: Path, shelf: Shelf, *, copy_of: _CopyOf) -> None:
    """The file that the links end in, from the newest of them that has a copy here."""
    from asympo.common.checkpoints.delta import apply_delta

    copies = [copy_of(link.of) for link in links]
    start = max((at for at, copy in enumerate(copies) if copy is not None), default=0)
    base, copy = target.with_name(f"{target.name}.whole"), copies[start]
    if copy is None:
        shelf.fetch({links[0]: base})
    else:
        base = copy / target.name
    deltas = {link: target.with_name(f"{target.name}.{at}") for at, link in enumerate(links[start + 1 :])}
    shelf.fetch(deltas)
    for path in deltas.values():
        out = path.with_name(f"{path.name}.whole")
        apply_delta(base, path, out)
        path.unlink()
        if base.parent == target.parent:
            base.unlink()
        base = out
    if base.parent == target.parent:
        base.rename(target)
    else:
        # It belongs to all processes of this machine.
        shutil.copyfile(base, target)
