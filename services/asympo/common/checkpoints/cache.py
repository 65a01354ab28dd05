"""Copies of shared steps on this machine's own disk: complete or absent, and not too many."""

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asympo.common import errors
from asympo.common.checkpoints import directory
from asympo.common.checkpoints.names import StepName, download_name, parse_temporary
from asympo.common.checkpoints.shared import SharedSteps
from asympo.common.checkpoints.verify import verify_files

logger = logging.getLogger(__name__)


def bring(shared: SharedSteps, name: StepName, parent: Path, *, allowed: re.Pattern[str]) -> Path:
    """A copy of the step under `parent`, every digest checked, in place of a damaged one.

    Raises errors.CorruptCheckpoint when it is gone or not what its manifest says, OSError when storage fails.
    """
    final = parent / str(name)
    if final.exists():
        directory.delete_step(final)
    with _download_directory(parent, name) as temporary:
        manifest = shared.download(name, temporary)
        verify_files(temporary, manifest.files, allowed=allowed, with_digests=True)
        try:
            directory.seal(temporary, manifest=manifest.content)
        except FileExistsError:
            logger.info("%s was fetched by another process at the same time", final)
    return final


def trim(parent: Path, *, keep: int) -> list[str]:
    """Delete all but the `keep` steps used last, and what downloads that died left; returns the names."""
    removed = _sweep_downloads(parent)
    used = sorted((_used_at(parent / str(name)), str(name)) for name in directory.step_names(parent))
    for _, name in used[: max(0, len(used) - keep)]:
        try:
            directory.delete_step(parent / name)
        except OSError as error:
            logger.warning("%s could not be deleted: %s", parent / name, error)
        else:
            removed.append(name)
    return removed


def note_use(path: Path) -> None:
    """Remember that a step is in use now."""
    os.utime(path)


def _used_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@contextmanager
def _download_directory(parent: Path, name: StepName) -> Iterator[Path]:
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
        try:
            descriptor = os.open(parent / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
        shutil.rmtree(parent / name, ignore_errors=True)
        removed.append(name)
    return removed


def drop_damaged(path: Path, error: errors.CorruptCheckpoint) -> None:
    """Delete a copy that does not verify: it can be fetched again. Raises OSError."""
    logger.warning("a damaged copy is fetched again: %s", error)
    directory.delete_step(path)
