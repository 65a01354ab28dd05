"""Steps in a directory that all machines share: `<root>/<run>/<kind>/step-00000042-f0007/`.

Weights lie there whole, or as differences to a step before (see `links`). Differences are made and undone on
the disks of the machines that write and read them.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Generic

from asympo.common.checkpoints import directory
from asympo.common.checkpoints.cache import StepCopies
from asympo.common.checkpoints.links import Attempt, Link, attempt_of, file_of, is_needed, links_of
from asympo.common.checkpoints.names import MANIFEST_NAME, RETAINED, StepName
from asympo.common.checkpoints.rooms import ScratchRoom
from asympo.common.checkpoints.steps import Checksums, Kind, M, ignore, newest_first
from asympo.common.checkpoints.transfer import Sent, Transfer
from asympo.common.checkpoints.verify import read_manifest, read_manifest_bytes, verify_step
from asympo.common.errors import CorruptCheckpoint, UnknownVersion
from asympo.common.names import check_run_name

_MAX_DAMAGED_FENCE = 10**6
"""What says that it is of a later one and cannot be read was made by nobody."""
_CACHED = 3
"""The one that is served, the one that comes, and one that somebody looks at."""
log = logging.getLogger(__name__)


class DirectorySteps(Generic[M]):
    """Every step becomes visible by one rename."""

    holds_copies = False

    def __init__(
        self,
        root: Path,
        run: str,
        kind: Kind[M],
        *,
        keyframe_every: int,
        cache: Path | None = None,
        cached: int | None = None,
        shares_copies: bool = True,
    ) -> None:
        """`cache` holds whole copies of what is shared as differences: none, one in the temporary directory.

        `cached` limits the copies; all processes of this machine share them, or else they are this object's.
        """
        self.path = Path(root) / check_run_name(run) / kind.directory
        self._kind = kind
        self._cache = cache
        self._cached = cached or _CACHED
        self._shares_copies = shares_copies
        self._transfer: Transfer[M] = Transfer(kind, keyframe_every=keyframe_every)
        self._opening = threading.Lock()
        self._room: ScratchRoom | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def sent_bytes(self) -> int:
        """Whole or not."""
        return self._transfer.sent_bytes

    def present(self) -> list[StepName]:
        """Names of all directories."""
        return directory.step_names(self.path)

    def newest_first(
        self, *, exclude: Collection[str] = (), on_corrupt: Callable[[StepName], None] = ignore
    ) -> Iterator[M]:
        """Steps whose files have the names and sizes that their manifests say, or can be had from others."""
        return newest_first(self._kind, self.present(), self.complete, exclude=exclude, on_corrupt=on_corrupt)

    def manifest(self, name: StepName) -> M:
        """As the directory has it; its files are not looked at."""
        return read_manifest(self.path / str(name), self._kind)

    def complete(self, name: StepName) -> M:
        """Sizes are compared, and what differences are to is looked for."""
        path = self.path / str(name)
        if not self._is_difference(name):
            return verify_step(path, self._kind, with_digests=False)
        manifest = self.manifest(name)
        attempt = attempt_of(manifest)
        listed = {entry.name for entry in manifest.files}
        found = directory.check_files(
            path,
            allowed=lambda each: bool(each == MANIFEST_NAME or self._kind.allowed.fullmatch(file_of(each))),
        )
        stored = set(found) - {MANIFEST_NAME}
        for file in sorted(listed.symmetric_difference(map(file_of, stored))):
            raise CorruptCheckpoint(
                f"{path / file} is {'missing' if file in listed else 'not listed in the manifest'}"
            )
        for entry in manifest.files:
            links = links_of(self.files_of, attempt, entry.name)
            if links is None or links[0].size != entry.size:
                raise CorruptCheckpoint(f"{path} lacks {entry.name}, or what it is a difference to is gone")
        return manifest

    def place(self, name: StepName) -> Path:
        """The directory itself, or that of a copy."""
        try:
            is_copied = self._is_difference(name)
        except CorruptCheckpoint:
            # Whoever verifies it hears of that.
            is_copied = False
        return self._copies.path / str(name) if is_copied else self.path / str(name)

    def bring(self, name: StepName) -> Path:
        """Differences are undone on this machine's disk."""
        if not self._is_difference(name):
            return self.path / str(name)
        self.verify(name)
        return self.place(name)

    def verify(self, name: StepName) -> M:
        """Reads every file."""
        if not self._is_difference(name):
            return verify_step(self.path / str(name), self._kind)
        manifest = self.complete(name)
        return self._copies.verify(
            name, lambda target: self._undo(name, manifest, target), digest=manifest.digest
        )

    def begin(self, name: StepName, *, is_whole: bool = False) -> Path:
        """Among the copies where it may become a difference, else where it will lie."""
        if not is_whole and self._transfer.may_differ:
            try:
                return directory.create_temporary(self._copies.path, name)
            except (OSError, CorruptCheckpoint) as error:
                log.warning("%s is shared whole, as no difference can be made: %s", name, error)
        return directory.create_temporary(self.path, name)

    def seal(self, temporary: Path, *, manifest: bytes, checksums: Checksums) -> M:
        """By renaming it."""
        name = directory.step_of(temporary)
        wanted = self._kind.open(manifest, name=name, what=str(temporary))
        if temporary.parent == self.path:
            self._transfer.note_shared(None)
            directory.seal(temporary, manifest=manifest)
            size = sum(entry.size for entry in wanted.files)
            attempt = attempt_of(wanted)
            self._transfer.note_shared(
                Sent(attempt=attempt, files=wanted.files, checksums=checksums, num_links=0, num_bytes=size)
            )
            return wanted
        ready = self._transfer.ready(wanted, temporary, checksums, shelf=self, copies=self._copies)
        with ready as (sent, stored):
            shared = directory.create_temporary(self.path, name)
            try:
                for each, path in stored.items():
                    (shutil.copyfile if sent.num_links else shutil.move)(path, shared / each)
                directory.seal(shared, manifest=manifest)
            except BaseException:
                directory.discard(shared)
                raise
        self._transfer.note_shared(sent)
        self._keep(temporary, manifest if sent.num_links else None)
        return wanted

    def highest_fence(self) -> int | None:
        """Of directories that a learner has sealed, however damaged: they get their names with a manifest."""
        read = self.sealed_fence() or 0
        limit = max(read, _MAX_DAMAGED_FENCE)
        sealed = [name for name in self.present() if self._may_be_sealed(name)]
        return max((name.fence for name in sealed if name.fence <= limit), default=None)

    def sealed_fence(self) -> int | None:
        """Of the newest directory whose manifest can be read."""
        for name in reversed(self.present()):
            try:
                self.manifest(name)
            except CorruptCheckpoint:
                continue
            except UnknownVersion:
                # Of a later release, and sealed.
                pass
            return name.fence
        return None

    def take_over(self, fence: int) -> None:
        """Nothing: names with a higher fence win."""

    def sweep(self, *, fence: int) -> list[str]:
        """Temporary directories."""
        if self._room is not None:
            directory.sweep(self._copies.path, fence=fence)
        return directory.sweep(self.path, fence=fence)

    def delete(self, name: StepName) -> bool:
        """By renaming it, then file by file; not what another step is a difference to."""
        return not is_needed(self._stored(), name) and directory.try_to_delete_step(self.path / str(name))

    def retain(self, name: StepName) -> None:
        """An empty file beside the directory."""
        (self.path / f"{name}{RETAINED}").touch()
        directory.flush_directory(self.path)

    def retained(self) -> set[str]:
        """By the files beside the directories."""
        return {path.name.removesuffix(RETAINED) for path in self.path.glob(f"*{RETAINED}")}

    # --- a shelf, for `transfer` -----------------------------------------------------------------------

    def files_of(self, attempt: Attempt) -> Mapping[str, int]:
        """Of whatever attempt has the name: a directory is never overwritten."""
        path = self.path / str(attempt.name)
        try:
            return {each.name: each.lstat().st_size for each in path.iterdir()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CorruptCheckpoint(f"{path} cannot be read: {error.strerror}") from error

    def whole(self, attempt: Attempt) -> Path | None:
        """The directory itself."""
        try:
            manifest = verify_step(self.path / str(attempt.name), self._kind, with_digests=False)
        except (CorruptCheckpoint, UnknownVersion):
            return None
        return self.path / str(attempt.name) if attempt_of(manifest) == attempt else None

    def fetch(self, wanted: Mapping[Link, Path]) -> None:
        """By copying."""
        for link, path in wanted.items():
            shutil.copyfile(self.path / str(link.of.name) / link.stored, path, follow_symlinks=False)

    # --- inside ----------------------------------------------------------------------------------------

    @property
    def _copies(self) -> StepCopies[M]:
        with self._opening:
            if self._room is None:
                owner = hashlib.sha256(str(self.path.resolve()).encode()).hexdigest()[:16]
                name = owner if self._shares_copies else None
                self._room = ScratchRoom("policies", name=name, below=self._cache)
        path = self._room.path / self._kind.directory
        return StepCopies(path, self._kind, keep=self._cached, is_durable=False)

    def _stored(self) -> Iterator[str]:
        """Names of all files and differences, but for directories that this user may not read."""
        for name in self.present():
            with contextlib.suppress(FileNotFoundError, PermissionError):
                yield from os.listdir(self.path / str(name))

    def _may_be_sealed(self, name: StepName) -> bool:
        """Unless it has no manifest for certain."""
        try:
            (self.path / str(name) / MANIFEST_NAME).lstat()
        except OSError as error:
            return not isinstance(error, FileNotFoundError)
        return True

    def _is_difference(self, name: StepName) -> bool:
        return self._kind.weights is not None and any(
            file_of(stored) != stored for stored in self.files_of(Attempt(name=name, payload=""))
        )

    def _undo(self, name: StepName, manifest: M, target: Path) -> bytes:
        """The whole files, every digest checked, into an empty directory; returns the manifest."""
        try:
            self._transfer.receive(manifest, target, shelf=self, copies=self._copies)
            return read_manifest_bytes(self.path / str(name))
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{self.path / str(name)} was deleted while it was read") from error

    def _keep(self, written: Path, manifest: bytes | None) -> None:
        """What was shared as a difference stays here whole, for readers and for the next difference."""
        try:
            if manifest is not None:
                # A reader here may have been quicker.
                with contextlib.suppress(FileExistsError):
                    self._copies.keep(written, manifest)
                self._copies.trim()
        except OSError as error:
            log.warning("No copy of %s is kept: %s", directory.step_of(written), error)
        finally:
            directory.discard(written)
