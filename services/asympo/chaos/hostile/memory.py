"""How much memory a service takes beyond what it had: its peak as the kernel counts it."""

import contextlib
from pathlib import Path

import psutil

_RESET_PEAK = "5"


class Growth:
    """Of one process, from when it is made."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before = self._process.memory_info().rss
        # Else what it took to start would hide what it takes from now on.
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)
        self.peak_bytes = 0
        """Newest figure; stays when the process ends."""

    def measure(self) -> int:
        """The peak since then, less what it held then."""
        with contextlib.suppress(psutil.Error, OSError, StopIteration):
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
            peak = next(line for line in lines if line.startswith("VmHWM"))
            self.peak_bytes = max(self.peak_bytes, int(peak.split()[1]) * 1024 - self._before)
        return self.peak_bytes
