"""The parts of one run on storage, and the chain of them that a training state names."""

import errno
import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from asympo.common.archive.parquet import encode_part, read_entries, read_info, verified
from asympo.common.archive.rows import ArchivedEntry, PartInfo, PartRef, ReadableGroup
from asympo.common.archive.state_head import STATE_HEADS, StateHead
from asympo.common.checkpoints import directory
from asympo.common.checkpoints.files import Files
from asympo.common.checkpoints.opening import open_files, open_steps
from asympo.common.checkpoints.steps import Steps
from asympo.common.errors import CorruptArchive, SequenceGap, StorageUnavailable
from asympo.common.object_store import ObjectStoreOptions

log = logging.getLogger(__name__)

T = TypeVar("T")

_PART = re.compile(r"seq-([0-9]{12,15})-([0-9]{12,15})-f([0-9]{4,10})-[0-9a-f]{8}\.parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One link of the chain."""

    ref: PartRef
    info: PartInfo


class ArchiveStore:
    """Writes, finds and reads the parts of one run."""

    def __init__(self, files: Files, heads: Steps[StateHead]) -> None:
        """`heads`: training states of the run, one of which names the newest part."""
        self._files = files
        self._heads = heads

    @property
    def path(self) -> Path:
        """Where parts lie on this machine: all of them, or copies."""
        return self._files.path

    def write(self, rows: Sequence[tuple[ArchivedEntry, ReadableGroup | None]], info: PartInfo) -> PartRef:
        """Makes a part durable; nothing names it yet. Raises PublishFailed when storage fails."""
        content = encode_part(rows, info)
        digest = hashlib.sha256(content).hexdigest()
        name = f"seq-{info.first:012d}-{info.last:012d}-f{info.fence:04d}-{digest[:8]}.parquet"
        what = f"the archive of groups {info.first} to {info.last}"
        with directory.storage_errors_as_publish_failed(what, self.path):
            # The name holds the content's digest: what is there under it is the same file.
            self._files.write(name, content, fence=info.fence)
        return PartRef(name=name, sha256=digest, first=info.first, last=info.last)

    def newest_tip(self) -> PartRef | None:
        """The newest part: the one that the newest valid training state names. None without any.

        The order is that in which a learner looks for the state to resume from. Raises UnknownVersion for one
        of a later release: what is older is not the newest.
        """
        return next((head.archive for head in self._heads.newest_first()), None)

    def bring(self, ref: PartRef) -> Path:
        """A part on this machine; CorruptArchive when it is gone, StorageUnavailable."""
        try:
            return self._files.bring(ref.name)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise CorruptArchive(f"{self._files}/{ref.name} is missing") from error
            raise StorageUnavailable(f"{ref.name} cannot be fetched: {error.strerror or error}") from error

    def content(self, ref: PartRef) -> bytes:
        """All bytes of a part, its digest checked; raises CorruptArchive by name, StorageUnavailable."""
        return self._read(ref, lambda path: verified(path, sha256=ref.sha256))

    def chain(self, tip: PartRef | None) -> list[Part]:
        """Parts from the oldest to `tip`; raises CorruptArchive naming the one that is missing or wrong."""
        found: list[Part] = []
        while tip is not None:
            info = self._read(tip, read_info)
            if (info.first, info.last) != (tip.first, tip.last):
                raise CorruptArchive(f"{self.path / tip.name} does not cover the groups that its name says")
            if found and found[-1].info.recipe == info.recipe:
                # Nearly always: one copy for all parts of a long run.
                info = replace(info, recipe=found[-1].info.recipe)
            found.append(Part(ref=tip, info=info))
            tip = info.parent
        return found[::-1]

    def read(self, part: Part) -> Iterator[ArchivedEntry]:
        """Entries of a part, every number it covers accounted for; CorruptArchive or SequenceGap by name."""
        expected = part.info.first
        lost = dict(part.info.lost)
        for entry in read_entries(self.content(part.ref), what=self.path / part.ref.name):
            while expected in lost:
                expected = lost[expected] + 1
            if entry.sequence != expected:
                raise SequenceGap(f"{self.path / part.ref.name} goes from {expected - 1} to {entry.sequence}")
            yield entry
            expected += 1
        while expected in lost:
            expected = lost[expected] + 1
        if expected != part.info.last + 1:
            raise SequenceGap(f"{self.path / part.ref.name} ends at {expected - 1}, it says {part.info.last}")

    def highest_fence(self) -> int | None:
        """The highest fence in any name, or None in an empty archive."""
        return max(
            (int(match[3]) for match in map(_PART.fullmatch, self._files.names("seq-")) if match),
            default=None,
        )

    def sweep(self, *, after_sequence: int, fence: int, kept: Collection[str]) -> list[str]:
        """Deletes what no state of ours will name: parts that reach beyond `after_sequence`, and torn ones.

        Only for the holder of `fence`, once a training state under it is durable: from then on no state
        of an earlier learner can become the newest. Names in `kept` stay. Returns what was deleted.
        """
        deleted = self._files.sweep(fence=fence)
        for name in self._files.names("seq-"):
            part = _PART.fullmatch(name)
            is_void = part is not None and int(part[2]) > after_sequence and int(part[3]) <= fence
            if is_void and name not in kept and self.delete(name):
                deleted.append(name)
        return deleted

    def delete(self, name: str) -> bool:
        """Deletes one file; False, with a warning, when that failed."""
        try:
            self._files.delete(name)
        except OSError as error:
            log.warning("%s/%s could not be deleted: %s", self._files, name, error)
            return False
        return True

    def entries(self, *, after_sequence: int | None = None) -> Iterator[ArchivedEntry]:
        """Every entry that the run's learners consumed and made durable, in order; needs no broker.

        `after_sequence`: yields what follows it, and refuses an archive that begins later; None takes the
        archive from its own beginning. Raises SequenceGap where numbers are missing, CorruptArchive where a
        part is, and both name the file.
        """
        tip = self.newest_tip()
        if tip is None:
            raise CorruptArchive(
                f"{self._files} has no archive: its learner must run with retain, and save once"
            )
        parts = self.chain(tip)
        cursor = parts[0].info.first - 1 if after_sequence is None else after_sequence
        for part in parts:
            if part.info.last <= cursor:
                continue
            if part.info.first > cursor + 1:
                raise SequenceGap(
                    f"the archive lacks groups {cursor + 1} to {part.info.first - 1}, before "
                    f"{part.ref.name}: its learner ran without retain then"
                )
            for entry in self.read(part):
                if entry.sequence > cursor:
                    yield entry
            cursor = part.info.last

    def _read(self, ref: PartRef, read: Callable[[Path], T]) -> T:
        """What `read` makes of a part; where it finds a copy damaged, of one that is fetched anew."""
        try:
            return read(self.bring(ref))
        except CorruptArchive as error:
            if not self._files.drop_copy(ref.name):
                raise
            log.warning("%s; it is fetched once more", error)
            return read(self.bring(ref))


def open_archive(run_directory: Path, options: ObjectStoreOptions | None = None) -> ArchiveStore:
    """The archive of the run `<root>/<run>`, where the settings say it is; asks no store anything."""
    heads = open_steps(run_directory.parent, run_directory.name, STATE_HEADS, options)
    return ArchiveStore(open_files(run_directory / "archive", options), heads)
