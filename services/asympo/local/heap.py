"""Heaps of processes with large tensors: C's, which keeps its memory, and Python's with its collector."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def return_free_pages() -> None:
    """Gives what is free inside the heap back to the system; does nothing where there is no glibc.

    Rows of ever new shapes leave gaps between what stays allocated, so a heap that is never trimmed grows by
    a few megabytes a step. A call takes 0.2 s with a 135M model, and the next step faults pages in again.
    """
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def large_imports() -> Iterator[None]:
    """Torch and transformers are imported in six sevenths of the time while nothing looks for garbage.

    What was imported lives as long as the process, so later collections pass it by as well, and so does the
    one with which a process ends: that alone takes a second.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
