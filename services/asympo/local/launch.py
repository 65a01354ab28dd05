"""What stands between the supervisor and a service: binds cores, ties the lives together, then execs.

`python -m asympo.local.launch --parent PID [--cores 0,1] [--outlive] -- PROGRAM ARGS...`. A process of its
own because code between fork and exec is not safe in a supervisor that has threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """Never returns when all is well."""
    split = argv.index("--")
    options, program = argv[:split], argv[split + 1 :]
    parent = int(options[options.index("--parent") + 1])
    if "--cores" in options and hasattr(os, "sched_setaffinity"):
        cores = options[options.index("--cores") + 1]
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    if "--outlive" not in options and sys.platform == "linux":
        # A supervisor that dies without a word must not leave services behind: they drain and stop.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            return 1
    os.execvp(program[0], program)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
