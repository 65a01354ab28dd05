"""Tries to break out of the sandbox, once in each scoring process; where it leaks, no program is run."""

import os
import sys
import tempfile
from pathlib import Path

from asympo.common.errors import BadSetting
from asympo.rewards.sandbox.run import Limits, environment, run_program

_NEEDS = "it needs Linux 5.13 or newer with Landlock and seccomp, on x86_64 or aarch64"
_PROGRAM = """
import ctypes, os, pathlib, shutil, socket, subprocess, threading
LIBC = ctypes.CDLL(None, use_errno=True)

def must_fail(attempt):
    try:
        result = attempt()
    except (OSError, MemoryError, RuntimeError):
        return
    assert False, repr(result)[:80]

def libc(name, *arguments):
    result = getattr(LIBC, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno())
    return result
"""
_ATTEMPTS = {
    "open a connection": "socket.create_connection(('127.0.0.1', 9))",
    "open a socket to its own machine": "socket.socket(socket.AF_UNIX)",
    "write a file": "open(folder / 'new', 'w')",
    "change a file": "open(folder / 'secret', 'a')",
    "delete a file": "os.unlink(folder / 'secret')",
    "rename a file": "os.rename(folder / 'secret', folder / 'other')",
    "make a folder": "os.mkdir(folder / 'sub')",
    "change a file's mode": "os.chmod(folder / 'secret', 0o777)",
    "change a file's times": "os.utime(folder / 'secret')",
    "link to a file": "os.symlink('secret', folder / 'link')",
    "write to /tmp": "open('/tmp/asympo-sandbox', 'w')",
    "write to shared memory": "open('/dev/shm/asympo-sandbox', 'w')",
    "read a file": "open(folder / 'secret').read()",
    "list a folder": "os.listdir(folder)",
    "list the home folder": "os.listdir(home)",
    "read another process's environment": "open(f'/proc/{parent}/environ', 'rb').read()",
    "read another process's memory": "open(f'/proc/{parent}/mem', 'rb')",
    "read its own process folder": "os.listdir('/proc/self')",
    "signal another process": "os.kill(parent, 0)",
    "signal its group": "os.killpg(0, 0)",
    "have another process signalled": "__import__('fcntl').fcntl(0, __import__('fcntl').F_SETOWN, parent)",
    "change another process's limits": "__import__('resource').prlimit(parent, 7)",
    "start a process": "os.fork() or os._exit(0)",
    "start another program": "subprocess.run(['/bin/true'])",
    "become another program": "os.execv('/bin/true', ['true'])",
    "start a thread": "threading.Thread(target=print).start()",
    "make a namespace": "libc('unshare', 0x10000000)",
    "trace another process": "libc('ptrace', 16, parent, 0, 0)",
    "leave its session": "os.setsid()",
    "use memory without limit": "bytearray(limit)",
}
"""What no program may do, and how it is tried."""


def prove_isolation() -> None:
    """Raises BadSetting with the first thing that a program can do and must not."""
    if sys.platform != "linux":
        raise BadSetting(f"reward code cannot confine programs on {sys.platform}: {_NEEDS}")
    limits = Limits(seconds=30.0)
    with tempfile.TemporaryDirectory() as directory:
        secret = Path(directory) / "secret"
        secret.write_text("nobody may read this")
        names = (
            f"folder, home = pathlib.Path({directory!r}), {str(Path.home())!r}\n"
            f"parent, limit = {os.getpid()}, {limits.memory_bytes}\n"
        )
        tests = [f"must_fail(lambda: {attempt})" for attempt in _ATTEMPTS.values()]
        # The interpreter itself may set its locale.
        tests.append(f"assert set(os.environ) <= {{*{sorted(environment())!r}, 'LC_CTYPE'}}, 'environment'")
        ended = run_program(_PROGRAM + names, limits=limits, tests=tests)
    if not ended.is_done:
        raise BadSetting(f"reward code cannot confine programs on this machine: {ended.reason}; {_NEEDS}")
    told = [*_ATTEMPTS, "read our environment"]
    leaks = [what for what, failure in zip(told, ended.failures, strict=True) if failure is not None]
    leaks += _unlimited()
    if leaks:
        raise BadSetting(
            f"the sandbox of reward code leaks on this machine: a program can {leaks[0]}; {_NEEDS}"
        )


def _unlimited() -> list[str]:
    """Limits that our side sets and that do not hold."""
    short = Limits(seconds=0.5, output_bytes=1000)
    endless = {
        "run for ever": ("while True: pass", "took more than"),
        "write for ever": ("while True: print('x' * 100, flush=True)", "wrote more than"),
    }
    return [
        what
        for what, (source, reason) in endless.items()
        if reason not in run_program(source, limits=short).reason
    ]
