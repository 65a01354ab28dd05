"""Copies of shared steps on this machine's own disk: complete or absent, and not too many."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asympo.common.checkpoints import directory
from asympo.common.checkpoints.names import StepName, download_name, parse_temporary


def trim(parent: Path, *, keep: int) -> list[str]:
    """Delete all but the `keep` steps used last, and what downloads that died left; returns the names."""
    removed = _sweep_downloads(parent)
    used = sorted((_used_at(parent / str(name)), str(name)) for name in directory.step_names(parent))
    for _, name in used[: max(0, len(used) - keep)]:
        if directory.try_to_delete_step(parent / name):
            removed.append(name)
    return removed


def note_use(path: Path) -> None:
    """Remember that a step is in use now."""
    # The kernel's own time moves in steps in which several are used.
    now = time.time_ns()
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
