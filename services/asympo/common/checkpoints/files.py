"""Small files of one run that appear whole and never change: in a directory, or in a bucket."""

import errno
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from asympo.common.checkpoints import directory

if TYPE_CHECKING:
    from asympo.common.checkpoints.bucket import Bucket

_TEMPORARY = re.compile(r"\.tmp-f([0-9]{4,10})-[0-9a-f]{16}")


class Files(Protocol):
    """Methods raise OSError when storage fails."""

    @property
    def path(self) -> Path:
        """Where they lie on this machine: all of them, or copies."""

    def names(self, start: str) -> list[str]:
        """Names that begin with `start`, sorted."""

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """The content; OSError with ENOENT when there is no such file."""

    def bring(self, name: str) -> Path:
        """The file on this machine, copied here if need be."""

    def drop_copy(self, name: str) -> bool:
        """Delete what was copied here, so that `bring` does it anew; False where this is no copy."""

    def write(self, name: str, content: bytes, *, fence: int) -> None:
        """Make a file visible, durably and whole."""

    def delete(self, name: str) -> None:
        """Delete a file; one that is gone already counts as deleted."""

    def sweep(self, *, fence: int) -> list[str]:
        """Delete what writers of lower fences left half written; returns the names."""


class DirectoryFiles:
    """In a directory that all machines share. A file of the same name is replaced."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self, start: str) -> list[str]:
        """Of the files there."""
        try:
            with os.scandir(self.path) as entries:
                found = [each for each in entries if each.name.startswith(start)]
        except FileNotFoundError:
            return []
        # A directory or a link of such a name is none of ours, and would not be read as one.
        return sorted(each.name for each in found if each.is_file(follow_symlinks=False))

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """No more than `max_bytes` of it."""
        with (self.path / name).open("rb") as file:
            return file.read(max_bytes)

    def bring(self, name: str) -> Path:
        """Nothing to bring."""
        return self.path / name

    def drop_copy(self, name: str) -> bool:
        """It is the file itself."""
        return False

    def write(self, name: str, content: bytes, *, fence: int) -> None:
        """Under a temporary name, flushed, and renamed."""
        directory.make_durable_directory(self.path)
        temporary = self.path / f".tmp-f{fence:04d}-{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory.flush_directory(self.path)

    def delete(self, name: str) -> None:
        """At once."""
        (self.path / name).unlink(missing_ok=True)

    def sweep(self, *, fence: int) -> list[str]:
        """Temporary names tell their writers' fences."""
        torn = [
            name for name in self.names(".tmp-") if (m := _TEMPORARY.fullmatch(name)) and int(m[1]) < fence
        ]
        for name in torn:
            self.delete(name)
        return torn


class BucketFiles:
    """In a bucket, with copies of what was brought here. No file is ever replaced."""

    def __init__(self, path: Path, *, bucket: "Bucket") -> None:
        self.path = path
        self._bucket = bucket
        self._root = f"{path.parent.name}/{path.name}/"

    def __str__(self) -> str:
        return f"{self._bucket}/{self._root}".rstrip("/")

    def names(self, start: str) -> list[str]:
        """Of the objects there."""
        return [found.key.removeprefix(self._root) for found in self._bucket.find(self._root + start)]

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """All of it; an error if it is larger."""
        return self._bucket.read(self._root + name, max_bytes=max_bytes)

    def bring(self, name: str) -> Path:
        """A copy, whole or not at all."""
        path = self.path / name
        if not path.exists():
            directory.make_durable_directory(self.path)
            temporary = self.path / f".get-{secrets.token_hex(8)}"
            try:
                self._bucket.download({self._root + name: temporary})
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return path

    def drop_copy(self, name: str) -> bool:
        """The object stays."""
        path = self.path / name
        is_here = path.exists()
        path.unlink(missing_ok=True)
        return is_here

    def write(self, name: str, content: bytes, *, fence: int) -> None:
        """In one request, and only if absent; FileExistsError where other content is."""
        key = self._root + name
        # What is there may be ours: the answer to an attempt that got through was lost.
        if not self._bucket.create(key, content) and self.read(name, max_bytes=len(content)) != content:
            raise FileExistsError(errno.EEXIST, "exists already and is never overwritten", f"{self}/{name}")

    def delete(self, name: str) -> None:
        """The object; a copy stays."""
        self._bucket.delete([self._root + name])

    def sweep(self, *, fence: int) -> list[str]:
        """Nothing is ever half written."""
        return []
