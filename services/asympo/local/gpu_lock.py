"""Says who may use a GPU that a learner and generators of one machine take turns on.

Two locks of the kernel's, which it takes back when their process ends, however it ends. A learner that
wants the GPU locks a second file first: generators look at it while they serve, and none of them takes the
GPU again before the learner has had it.
"""

import errno
import fcntl
import os
from pathlib import Path

from asympo.common.errors import BadSetting

POLL_SECONDS = 0.02
"""How often whoever waits looks again; the kernel tells nobody."""


class GpuLock:
    """One process's hold on the files; the calls return at once."""

    def __init__(self, path: Path) -> None:
        """Makes the files where they are missing; raises BadSetting where it cannot."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._gpu = _open(path)
            self._wish = _open(path.with_name(f"{path.name}.wanted"))
            self.is_wanted()
        except OSError as error:
            raise BadSetting(
                f"gpu_lock {path} cannot be locked ({error.strerror}): give a file on a local disk that may "
                "be written"
            ) from error

    def try_own(self) -> bool:
        """For a learner: True once it has the GPU alone; from the first call on, generators see it wait."""
        return _try(self._wish, fcntl.LOCK_EX) and _try(self._gpu, fcntl.LOCK_EX)

    def disown(self) -> None:
        """For a learner: generators may use the GPU again."""
        fcntl.flock(self._gpu, fcntl.LOCK_UN)
        fcntl.flock(self._wish, fcntl.LOCK_UN)

    def is_wanted(self) -> bool:
        """For a generator: whether a learner uses the GPU or waits for it."""
        if not _try(self._wish, fcntl.LOCK_SH):
            return True
        fcntl.flock(self._wish, fcntl.LOCK_UN)
        return False

    def try_share(self) -> bool:
        """For a generator: True once it may use the GPU, beside other generators."""
        return not self.is_wanted() and _try(self._gpu, fcntl.LOCK_SH)

    def unshare(self) -> None:
        """For a generator: it no longer uses the GPU."""
        fcntl.flock(self._gpu, fcntl.LOCK_UN)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True
