"""Peak memory of this process, or of its GPU, since a mark."""

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Bytes in use at the mark, and the most since then.

    CPU: resident memory as the kernel counts it; where it cannot be reset (not Linux) the peak is that of the
    whole process. CUDA: what torch's allocator handed out.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> int:
        """Starts over; returns the bytes in use now."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            return torch.cuda.memory_allocated(self._device)
        if _CLEAR.exists():
            _CLEAR.write_text("5")
        return _status_bytes("VmRSS") or _process_peak()

    def peak(self) -> int:
        """The most bytes in use since the mark."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return torch.cuda.max_memory_allocated(self._device)
        return _status_bytes("VmHWM") or _process_peak()


def _status_bytes(field: str) -> int:
    if not _STATUS.exists():
        return 0
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _process_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
