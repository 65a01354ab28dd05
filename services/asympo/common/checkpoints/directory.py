"""A checkpoint directory becomes visible whole, or not at all.

Written under a temporary name, every file flushed, manifest last, renamed, and the rename flushed. A crash
at any point leaves either nothing visible or everything.
"""

import errno
import fcntl
import functools
import logging
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from asympo.common.checkpoints.names import (
    MANIFEST_NAME,
    StepName,
    parse_name,
    parse_temporary,
    temporary_name,
    trash_name,
)
from asympo.common.errors import CorruptCheckpoint, PublishFailed
from asympo.common.foreign.text import printable

log = logging.getLogger(__name__)

_being_written: set[Path] = set()
"""Temporary directories of this process, so that sweeping spares them."""
_being_written_lock = threading.Lock()


def create_temporary(parent: Path, name: StepName) -> Path:
    """A new, empty directory beside the final one, invisible to readers. Raises OSError."""
    make_durable_directory(parent)
    path = parent / temporary_name(name)
    with _being_written_lock:
        path.mkdir()
        _being_written.add(path)
    return path


def seal(temporary: Path, *, manifest: bytes, is_durable: bool = True) -> Path:
    """Flush the files, write the manifest, give the directory its final name, returned. Raises OSError.

    What need not outlive a power cut is not flushed.
    """
    final = temporary.parent / str(step_of(temporary))
    if is_durable:
        flush_files(temporary)
    with open(temporary / MANIFEST_NAME, "xb") as file:
        file.write(manifest)
        file.flush()
        if is_durable:
            os.fsync(file.fileno())
    if is_durable:
        flush_directory(temporary)
    if os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, "exists already and is never overwritten", str(final))
    os.rename(temporary, final)
    if is_durable:
        try:
            flush_directory(final.parent)
        except OSError:
            # Else readers would have what its writer believes failed, and may not write again.
            os.rename(final, temporary)
            raise
    with _being_written_lock:
        _being_written.discard(temporary)
    return final


def step_of(temporary: Path) -> StepName:
    """The step that a temporary directory is to become."""
    parsed = parse_temporary(temporary.name)
    if parsed is None:
        raise ValueError(f"{temporary} is not a temporary directory")
    return parsed[1]


def discard(temporary: Path) -> None:
    """Remove a temporary directory that will not be sealed; what resists is left for the next sweep."""
    shutil.rmtree(temporary, ignore_errors=True)
    with _being_written_lock:
        _being_written.discard(temporary)


def sweep(parent: Path, *, fence: int) -> list[str]:
    """Delete what dead writers left behind; returns the names.

    Only the holder of the highest fence writes, so a temporary directory with this fence or a lower one that
    this process is not writing belongs to a writer that is dead or has lost the run. Needs no process ids,
    which mean nothing on shared storage. Downloads belong to readers, which hold a lock.
    """
    removed = []
    for name in directory_names(parent):
        found = parse_temporary(name)
        if found is None or found[1].fence > fence:
            continue
        with _being_written_lock:
            if parent / name in _being_written:
                continue
        if found[0] == "get" and is_locked(parent / name):
            continue
        shutil.rmtree(parent / name, ignore_errors=True)
        removed.append(name)
    return removed


def is_locked(path: Path) -> bool:
    """Whether the process that downloads into a directory lives: it holds a lock on it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:
        # Of another user, who alone can tell.
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def delete_step(path: Path) -> None:
    """Delete a published directory: it vanishes in one rename, then its files go. Raises OSError."""
    name = parse_name(path.name)
    if name is None:
        raise ValueError(f"{path} is not a checkpoint directory")
    trash = path.parent / trash_name(name)
    os.rename(path, trash)
    flush_directory(path.parent)
    shutil.rmtree(trash)


def try_to_delete_step(path: Path) -> bool:
    """Delete a published directory; False, with a warning, when that fails."""
    try:
        delete_step(path)
    except OSError as error:
        log.warning("%s could not be deleted: %s", path, error)
        return False
    return True


def step_names(parent: Path) -> list[StepName]:
    """Steps that have a directory under `parent`, sorted so that the last one wins; nothing is verified."""
    names = []
    for name in directory_names(parent):
        parsed = parse_name(name)
        if parsed is not None:
            names.append(parsed)
        elif name.startswith("step-"):
            _report_strange(parent, name)
    return sorted(names, key=lambda name: name.rank)


@functools.lru_cache(maxsize=1000)
def _report_strange(parent: Path, name: str) -> None:
    """Once for each name."""
    log.warning("%s in %s is ignored: no learner gives such a name", printable(name), parent)


def directory_names(parent: Path) -> list[str]:
    """Names of the real directories (no symlinks) under `parent`; empty when it does not exist."""
    try:
        with os.scandir(parent) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def check_files(path: Path, *, allowed: Callable[[str], bool]) -> list[str]:
    """Names of the files in `path`, sorted; CorruptCheckpoint unless all are regular and allowed."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise CorruptCheckpoint(f"{path} is not a directory")
        with os.scandir(path) as entries:
            found = sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries)
    except OSError as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    for name, is_regular in found:
        if not is_regular:
            raise CorruptCheckpoint(f"{path / name} is a link or a directory; only plain files belong there")
        if not allowed(name):
            raise CorruptCheckpoint(f"{path / name} is not among the files a checkpoint may have")
    return [name for name, _ in found]


def make_durable_directory(path: Path) -> None:
    """mkdir -p that survives a power cut. Raises OSError."""
    if path.is_dir():
        return
    make_durable_directory(path.parent)
    path.mkdir(exist_ok=True)
    flush_directory(path.parent)


def flush_files(path: Path) -> None:
    """fsync every file in `path`. Raises OSError."""
    for name in os.listdir(path):
        descriptor = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def flush_directory(path: Path) -> None:
    """fsync the directory itself, so that its entries survive a power cut. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse to flush a directory; they flush entries as they are made.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors_as_publish_failed(what: str, path: Path) -> Iterator[None]:
    """Turn failures of storage inside the block into PublishFailed with one clear sentence."""
    try:
        yield
    except OSError as error:
        raise PublishFailed(_explain(what, path, error.errno, error.strerror or str(error))) from error
    except SafetensorError as error:
        # The library, written in Rust, gives the number only in its text.
        number = re.search(r"os error (\d+)", str(error))
        reason = str(error) if number is None else os.strerror(int(number[1]))
        raise PublishFailed(_explain(what, path, number and int(number[1]), reason)) from error


def _explain(what: str, path: Path, number: int | None, reason: str) -> str:
    if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{what} could not be written under {path}: {reason}"
    try:
        free = f"{shutil.disk_usage(path).free / 2**30:.2f} GiB free"
    except OSError:
        free = "free space unknown"
    return (
        f"{what} does not fit under {path} ({free}, {reason}): free some space, or set a "
        "checkpoint root on a larger volume"
    )
