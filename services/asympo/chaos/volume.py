"""A small disk of its own, a file system in a file: it can be full, read-only, or fail as a disk does."""

import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

_SHUT_DOWN = 0x8004587D
"""ext4's ioctl after which every read and write fails, as on a disk that is gone."""
_WITHOUT_FLUSH = 2


class Volume:
    """One ext4 file system; `why_not` says why this machine does not allow one."""

    def __init__(self, directory: Path, *, size_mb: int) -> None:
        self._image, self.path = directory / "volume.img", directory / "volume"
        self._filler = self.path / "filler"
        self.path.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(size_mb * 2**20)
        # Nothing set aside for root, who may be running this.
        _call("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))

    @staticmethod
    def why_not(directory: Path) -> str:
        """Empty where one can be mounted."""
        if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
            return "only root can mount, and mkfs.ext4 is needed"
        try:
            volume = Volume(directory, size_mb=16)
            volume.mount()
            volume.unmount()
        except OSError as error:
            return str(error)
        return ""

    def mount(self, *, is_read_only: bool = False) -> None:
        _call("mount", "-o", "loop,ro" if is_read_only else "loop", str(self._image), str(self.path))

    def unmount(self) -> None:
        _call("umount", str(self.path))

    def fill(self) -> None:
        """Not one byte is left."""
        with self._filler.open("wb", buffering=0) as filler:
            for block in (2**20, 512):
                try:
                    while filler.write(bytes(block)):
                        pass
                except OSError:
                    continue

    def make_room(self) -> None:
        self._filler.unlink()

    def fail(self) -> None:
        """From now on nothing can be read or written; `replace` brings back what was synced."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUT_DOWN, struct.pack("I", _WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    def replace(self) -> None:
        """What the failed disk holds, in a new one: a failed one that others have mounted stays alive."""
        self.unmount()
        copy = self._image.with_suffix(".copy")
        _call("cp", "--sparse=always", str(self._image), str(copy))
        copy.replace(self._image)
        self.mount()


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip()}")
