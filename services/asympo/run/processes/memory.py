"""Memory of a process tree, sampled while it lives."""

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil


@dataclass(frozen=True, kw_only=True)
class MemorySample:
    """Memory of one tree at one moment."""

    total_bytes: int
    kind: Literal["pss", "rss"]
    """pss counts a page shared by n processes as 1/n in each; rss counts it n times."""


def tree_memory(pid: int) -> MemorySample:
    """Memory of a process and all below it; `pss` where the kernel tells it for all of them."""
    try:
        root = psutil.Process(pid)
        pids = [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.Error:
        return MemorySample(total_bytes=0, kind="pss")
    parts = [_process_memory(each) for each in pids]
    known = [part for part in parts if part is not None]
    if all(kind == "pss" for _, kind in known):
        return MemorySample(total_bytes=sum(size for size, _ in known), kind="pss")
    total = sum(_rss(each) for each in pids)
    return MemorySample(total_bytes=total, kind="rss")


def _process_memory(pid: int) -> tuple[int, Literal["pss", "rss"]] | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return (_rss(pid), "rss") if psutil.pid_exists(pid) else None
    except OSError:
        lines = []
    pss = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)
    return (_rss(pid), "rss") if pss is None else (pss, "pss")


def _rss(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def tree_rss(pid: int) -> int:
    """Resident bytes of a process and all below it, shared pages counted once for each: cheap to ask."""
    try:
        root = psutil.Process(pid)
        return sum(_rss(each) for each in (pid, *(child.pid for child in root.children(recursive=True))))
    except psutil.Error:
        return 0


class MemoryWatch:
    """Samples this process's tree in a thread and keeps the peak."""

    def __init__(self, *, every_seconds: float = 1.0, exact_every_seconds: float = 10.0) -> None:
        self._every_seconds = every_seconds
        self._exact_every = max(1, round(exact_every_seconds / every_seconds))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self.newest_bytes = 0
        self.peak_bytes = 0
        self.kind: Literal["pss", "rss"] = "pss"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        count, rss_at_peak = 0, 0
        while not self._stop.wait(self._every_seconds):
            # The kernel walks every page to tell pss: only when this may be a peak, and now and then.
            rss = tree_rss(os.getpid())
            if count % self._exact_every and rss <= rss_at_peak:
                count += 1
                continue
            count, rss_at_peak = count + 1, max(rss, rss_at_peak)
            sample = tree_memory(os.getpid())
            self.newest_bytes = sample.total_bytes
            if sample.total_bytes > self.peak_bytes:
                self.peak_bytes, self.kind = sample.total_bytes, sample.kind
