"""A heap that keeps its memory gives back what is free inside it when it is told to."""

import os
import subprocess
import sys

from asympo.run.prepare.machine import KEEP_MEMORY

_GAPS = """
import ctypes, psutil
from asympo.local.heap import return_free_pages

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
resident = lambda: psutil.Process().memory_info().rss >> 20
blocks = [libc.malloc(1 << 20) for _ in range(256)]
for block in blocks:
    libc.memset(block, 1, 1 << 20)
for block in blocks[::2]:  # gaps: what lies between them lives on
    libc.free(block)
before = resident()
return_free_pages()
print(before - resident())
"""


def test_free_pages_between_living_ones_are_given_back() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _GAPS],
        env={**os.environ, **KEEP_MEMORY},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) > 100
