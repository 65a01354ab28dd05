"""Directories for what can be made again, on this machine's own disk: gone when nobody uses them any more."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asympo.common.errors import CorruptCheckpoint


class ScratchRoom:
    """A directory that processes of one user share by its name, or one of its own; the last one removes it.

    What processes that were killed have left is removed by the next one that opens a room: nobody holds its
    lock.
    """

    def __init__(self, use: str, *, name: str | None = None, below: Path | None = None) -> None:
        """`use` keeps apart what is removed alike; `below` is another place than the temporary directory."""
        shared = (below or Path(tempfile.gettempdir())) / f"asympo-{use}-{os.geteuid()}"
        shared.mkdir(mode=0o700, parents=below is not None, exist_ok=True)
        if shared.is_symlink() or shared.stat().st_uid != os.geteuid():
            raise CorruptCheckpoint(
                f"{shared} belongs to somebody else: set TMPDIR to a directory of your own"
            )
        with _at_the_door(shared):
            for room in shared.iterdir():
                if room.name != name and (left := _lock(room, fcntl.LOCK_EX)) is not None:
                    shutil.rmtree(room, ignore_errors=True)
                    os.close(left)
            self.path = Path(tempfile.mkdtemp(dir=shared)) if name is None else shared / name
            self.path.mkdir(mode=0o700, exist_ok=True)
            held = _lock(self.path, fcntl.LOCK_SH)
        self._close = weakref.finalize(self, _leave, shared, self.path, held)


@contextmanager
def _at_the_door(shared: Path) -> Iterator[None]:
    """One at a time: a room that was just made is not locked yet."""
    door = os.open(shared, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)
        yield
    finally:
        os.close(door)


def _leave(shared: Path, path: Path, held: int | None) -> None:
    if held is not None:
        os.close(held)
    with contextlib.suppress(OSError), _at_the_door(shared):
        left = _lock(path, fcntl.LOCK_EX)
        if left is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(left)


def _lock(path: Path, how: int) -> int | None:
    """A descriptor that holds the lock of a directory; None where another process has it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
