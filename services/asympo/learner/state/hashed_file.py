"""A large new file, written past the page cache and hashed on the way."""

import errno
import fcntl
import hashlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_BUFFER_BYTES = 8 << 20
_ALIGNMENT = 4096
"""Satisfies direct I/O on every block size in use."""
_O_DIRECT = getattr(os, "O_DIRECT", 0)


class HashedFile:
    """Writes a file once, front to back; flushed to storage when closed. Every method raises OSError.

    Direct I/O keeps gigabytes that nobody will read soon from pushing the model out of the page cache, and on
    virtual machines is 2 to 4 times as fast; where a file system lacks it, ordinary writes take over.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags | _O_DIRECT, 0o666)
            self._is_direct = bool(_O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            path.unlink(missing_ok=True)  # some file systems create the file before they refuse the flag
            self._descriptor = os.open(path, flags, 0o666)
            self._is_direct = False
        # Anonymous maps are page-aligned, as direct I/O demands of memory too.
        self._map = mmap.mmap(-1, _BUFFER_BYTES)
        self._buffer = memoryview(self._map)
        self._filled = 0
        self._hasher = hashlib.sha256()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="state-digest")

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                os.fsync(self._descriptor)
        finally:
            self._pool.shutdown(wait=True)
            self._buffer.release()
            self._map.close()
            os.close(self._descriptor)

    def write(self, content: memoryview) -> None:
        """Append all of `content`, a view of bytes."""
        while content:
            part = content[: _BUFFER_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            content = content[len(part) :]
            if self._filled == _BUFFER_BYTES:
                self._flush()

    def hexdigest(self) -> str:
        """sha256 of the whole file; call it once the file is closed."""
        return self._hasher.hexdigest()

    def _flush(self) -> None:
        with self._buffer[: self._filled] as content:
            hashed = self._pool.submit(self._hasher.update, content)
            try:
                self._write_all(content)
            finally:
                hashed.result()
        self._filled = 0

    def _write_all(self, content: memoryview) -> None:
        written = 0
        while written < len(content):
            if self._is_direct and (written % _ALIGNMENT or len(content) % _ALIGNMENT):
                self._leave_direct()
            try:
                num_written = os.write(self._descriptor, content[written:])
            except OSError as error:
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                self._leave_direct()
                continue
            if num_written == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            written += num_written

    def _leave_direct(self) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_O_DIRECT)
        self._is_direct = False
