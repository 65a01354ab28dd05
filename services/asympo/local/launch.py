"""Runs between the supervisor and a service: binds cores, makes the service end with its parent, then execs.

`python -m asympo.local.launch --parent PID [--cores 0,1] [--outlive | --while-held LOCK] -- PROGRAM ARGS...`
A process of its own because code between fork and exec is not safe in a supervisor that has threads.
"""

import ctypes
import fcntl
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Never returns when all is well."""
    split = argv.index("--")
    options, program = argv[:split], argv[split + 1 :]
    parent = int(options[options.index("--parent") + 1])
    if "--cores" in options and hasattr(os, "sched_setaffinity"):
        cores = options[options.index("--cores") + 1]
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    if "--while-held" in options:
        return _run_while_held(options[options.index("--while-held") + 1], program)
    if "--outlive" not in options and not end_with(parent):
        return 1
    os.execvp(program[0], program)


def end_with(parent: int) -> bool:
    """A supervisor that dies without a word must not leave services behind: they drain and stop."""
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return os.getppid() == parent


def _run_while_held(lock: str, program: list[str]) -> int:
    """Stays, as the program's parent, and ends it once nobody holds the lock: the last one it served is gone.

    It ends as the program ends. Killed itself, it takes the program along.
    """
    me = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            if end_with(me):
                os.execvp(program[0], program)
        finally:
            os._exit(1)

    def end_when_free() -> None:
        # Held on: nobody else may begin while the program is still ending.
        fcntl.flock(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), fcntl.LOCK_EX)
        os.kill(child, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    threading.Thread(target=end_when_free, daemon=True).start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(me, -code)
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
