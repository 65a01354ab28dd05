"""Slow disks, full disks and clocks that jump: a small library loaded into a process before libc.

Compiled from `shim.c` when a run starts. Each process under test has a control file, mapped by both sides: we
write what is to happen, it counts what did.
"""

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

from asympo.common.errors import BadSetting

_PAGE_BYTES = 2048
_FSYNC_DELAY, _CLOCK_OFFSET, _IS_FULL, _SLOW_FSYNCS, _REFUSED_WRITES, _SHIFTED_READS = range(0, 48, 8)
_PREFIX, _PREFIX_BYTES = 512, 1024


def build_shim(directory: Path) -> Path | None:
    """The compiled library; None on a machine without a C compiler. Raises BadSetting when it refuses."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    source, library = Path(__file__).with_name("shim.c"), directory / "shim.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines() or ["no output"]
        raise BadSetting(f"{compiler} cannot build {source}: {words[-1]}")
    return library


class Control:
    """What one process is told, and what it did. All values are exact at any instant."""

    def __init__(self, *, library: Path, path: Path) -> None:
        path.write_bytes(bytes(_PAGE_BYTES))
        self._library, self._path = library, path
        with path.open("r+b") as file:
            self._page = mmap.mmap(file.fileno(), _PAGE_BYTES)

    @property
    def environment(self) -> dict[str, str]:
        """For the process; its children share it."""
        return {"LD_PRELOAD": str(self._library), "ASYMPO_CHAOS_CONTROL": str(self._path)}

    def slow_fsync(self, seconds: float) -> None:
        """Every fsync takes this much longer; 0 ends it."""
        self._set(_FSYNC_DELAY, int(seconds * 1e6))

    def shift_clock(self, seconds: float) -> None:
        """The wall clock is off by this much from now on."""
        self._set(_CLOCK_OFFSET, int(seconds * 1e6))

    @property
    def clock_shift_seconds(self) -> float:
        return self._get(_CLOCK_OFFSET) / 1e6

    def fill_disk(self, prefix: Path) -> None:
        """Writes to files below `prefix` fail with ENOSPC until `free_disk`."""
        raw = str(prefix.resolve()).encode()
        self._page[_PREFIX : _PREFIX + _PREFIX_BYTES] = raw.ljust(_PREFIX_BYTES, b"\0")
        self._set(_IS_FULL, 1)

    def free_disk(self) -> None:
        self._set(_IS_FULL, 0)

    @property
    def num_slow_fsyncs(self) -> int:
        return self._get(_SLOW_FSYNCS)

    @property
    def num_refused_writes(self) -> int:
        return self._get(_REFUSED_WRITES)

    @property
    def num_shifted_reads(self) -> int:
        """Times that the moved wall clock was read."""
        return self._get(_SHIFTED_READS)

    def _set(self, offset: int, value: int) -> None:
        struct.pack_into("<q", self._page, offset, value)

    def _get(self, offset: int) -> int:
        return int(struct.unpack_from("<q", self._page, offset)[0])
