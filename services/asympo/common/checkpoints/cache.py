"""Copies of shared steps on this machine's own disk: complete or absent, and not too many."""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic

from asympo.common.checkpoints import directory
from asympo.common.checkpoints.links import Attempt, attempt_of
from asympo.common.checkpoints.names import StepName, download_name, parse_temporary
from asympo.common.checkpoints.steps import Kind, M
from asympo.common.checkpoints.verify import read_manifest, verify_files, verify_step
from asympo.common.errors import CorruptCheckpoint, UnknownVersion

log = logging.getLogger(__name__)

_TURN_SECONDS = 120.0
"""What another process here is fetching is waited for so long: it may be frozen."""
_LOOK_SECONDS = 0.05


class StepCopies(Generic[M]):
    """Those of one kind of one run, for all processes of this machine."""

    def __init__(self, path: Path, kind: Kind[M], *, keep: int | None, is_durable: bool) -> None:
        """`keep` limits those that `verify` leaves. Durable ones outlive a power cut."""
        self.path = path
        self._kind = kind
        self._keep = keep
        self._is_durable = is_durable

    def bring(self, name: StepName, fetch: Callable[[Path], bytes], *, digest: str | None = None) -> Path:
        """The directory of a step; `fetch` fills it and returns the manifest, if there is no copy yet.

        With the digest of a manifest, a copy with another one is fetched again.
        """
        final = self.path / str(name)
        with self._turn():
            if final.exists() and self._is_of(final, digest):
                self._note_use(final)
                return final
            if final.exists():
                directory.delete_step(final)
            with download_directory(self.path, name) as temporary:
                content = fetch(temporary)
                try:
                    self.keep(temporary, content)
                except FileExistsError:
                    log.info("%s was fetched by another process at the same time", final)
        return final

    def verify(self, name: StepName, fetch: Callable[[Path], bytes], *, digest: str | None = None) -> M:
        """Reads every file of the copy; one that is damaged, or of another manifest, is fetched again."""
        path = self.path / str(name)
        try:
            manifest = verify_step(path, self._kind)
            if digest not in (None, manifest.digest):
                raise CorruptCheckpoint(f"{path} is of another run of the same name")
        except CorruptCheckpoint as error:
            if path.exists():
                log.warning("a damaged copy is fetched again: %s", error)
                directory.delete_step(path)
            manifest = verify_step(self.bring(name, fetch), self._kind, with_digests=False)
        self._note_use(path)
        self.trim()
        return manifest

    def _is_of(self, path: Path, digest: str | None) -> bool:
        try:
            return digest is None or read_manifest(path, self._kind).digest == digest
        except (CorruptCheckpoint, UnknownVersion):
            return False

    def of(self, attempt: Attempt) -> Path | None:
        """The step's directory here; what is in it may be damaged."""
        path = self.path / str(attempt.name)
        try:
            manifest = read_manifest(path, self._kind)
            verify_files(path, manifest, self._kind, with_digests=False)
        except (CorruptCheckpoint, UnknownVersion):
            return None
        return path if attempt_of(manifest) == attempt else None

    def keep(self, temporary: Path, manifest: bytes) -> Path:
        """Gives a finished directory its name. Raises OSError, FileExistsError among them."""
        final = directory.seal(temporary, manifest=manifest, is_durable=self._is_durable)
        self._note_use(final)
        return final

    def delete(self, name: StepName) -> None:
        """If it is there and does not resist."""
        if (self.path / str(name)).exists():
            directory.try_to_delete_step(self.path / str(name))

    def trim(self) -> None:
        """Deletes those used longest ago, and what downloads that died left."""
        if self._keep is not None:
            trim(self.path, keep=self._keep)

    def _note_use(self, path: Path) -> None:
        if self._keep is not None:
            note_use(path)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One process fetches at a time: the others find what it has brought."""
        directory.make_durable_directory(self.path)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        deadline = time.monotonic() + _TURN_SECONDS
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(_LOOK_SECONDS)
            yield
        finally:
            os.close(descriptor)


def trim(parent: Path, *, keep: int) -> list[str]:
    """Delete all but the `keep` steps used last, and what downloads that died left; returns the names."""
    removed = _sweep_downloads(parent)
    used = sorted((_used_at(parent / str(name)), str(name)) for name in directory.step_names(parent))
    for _, name in used[: max(0, len(used) - keep)]:
        if directory.try_to_delete_step(parent / name):
            removed.append(name)
    return removed


def note_use(path: Path) -> None:
    """Remember that a step is in use now, after all others here whatever the clock says."""
    others = (_used_at(path.parent / str(name)) for name in directory.step_names(path.parent))
    # The kernel's own time moves in steps in which several are used, and clocks step back.
    now = max(time.time_ns(), max(others, default=0) + 1)
    # Another process may have deleted it by now.
    with contextlib.suppress(FileNotFoundError):
        os.utime(path, ns=(now, now))


def _used_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@contextmanager
def download_directory(parent: Path, name: StepName) -> Iterator[Path]:
    """An empty directory, locked for as long as its writer lives and removed unless it was renamed."""
    directory.make_durable_directory(parent)
    temporary = parent / download_name(name)
    temporary.mkdir()
    descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def _sweep_downloads(parent: Path) -> list[str]:
    """Removes directories whose writers are dead: nobody holds their locks."""
    removed = []
    for name in directory.directory_names(parent):
        found = parse_temporary(name)
        if found is None or found[0] == "tmp":
            continue
        if directory.is_locked(parent / name):
            continue
        shutil.rmtree(parent / name, ignore_errors=True)
        removed.append(name)
    return removed
