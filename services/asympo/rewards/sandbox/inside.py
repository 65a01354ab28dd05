"""Runs inside: shuts its own process in, then runs the program. A script that imports nothing of ours.

Its arguments are the descriptor that the job is read from and the one that the verdict goes to.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_RULE_PATH_BENEATH = 1
_SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVS, _FILTER = 1, 22, 38, 2
_libc = ctypes.CDLL(None, use_errno=True)


def main(job_descriptor: int, verdict_descriptor: int) -> None:
    """Settings and program are the first line of the job, the tests the second."""
    with os.fdopen(job_descriptor, "rb") as job:
        settings = json.loads(job.readline())
        try:
            _shut_in(settings)
        except OSError as error:
            _tell(verdict_descriptor, {"refused": str(error)})
            return
        tests = settings["tests"]
        namespace: dict[str, Any] = {
            "__name__": "program" if tests else "__main__",
            "__builtins__": __builtins__,
        }
        # Its clock runs from here. JSON may begin with white space.
        os.write(verdict_descriptor, b"\n")
        exec(compile(settings["program"], "program", "exec"), namespace)
        if not tests:
            return
        asked = json.loads(job.readline())
    _tell(verdict_descriptor, {"nonce": asked["nonce"], "failures": _failures(asked["tests"], namespace)})


def _failures(tests: list[str], namespace: dict[str, Any]) -> list[str | None]:
    """Of each test why it failed, None where it did not."""
    found: list[str | None] = []
    for test in tests:
        try:
            exec(compile(test, "test", "exec"), namespace)
            found.append(None)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a test fails with whatever it likes
            found.append(f"{type(error).__name__}: {error}"[:200])
    return found


def _tell(descriptor: int, verdict: dict[str, Any]) -> None:
    os.write(descriptor, json.dumps(verdict).encode())


def _shut_in(settings: dict[str, Any]) -> None:
    """Irrevocable, for this process and whatever it might start."""
    _check(_libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    _check(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    _restrict_files(settings["readable"])
    for name, limit in settings["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    code = bytes.fromhex(settings["filter"])
    instructions = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(
        struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(instructions))
    )
    _check(_libc.prctl(_SET_SECCOMP, _FILTER, program, 0, 0), "the seccomp filter")


def _restrict_files(readable: list[str]) -> None:
    """With Landlock: these paths may be read, nothing may be written, no other process may be traced."""
    version = _check(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1), "Landlock")
    access = (1 << 13) - 1 | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
    fields = [access] + [0b11] * ((version >= 4) + (version >= 6))
    attribute = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = _check(
        _libc.syscall(_CREATE_RULESET, attribute, ctypes.c_size_t(len(attribute)), 0), "Landlock's ruleset"
    )
    for path in readable:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE
        rule = struct.pack("=Qi", allowed, descriptor)
        _check(_libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0), f"Landlock's rule for {path}")
        os.close(descriptor)
    _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(f"{what} is not available: {os.strerror(ctypes.get_errno())}")
    return result


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
