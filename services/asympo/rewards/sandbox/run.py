"""Runs one program in the sandbox, and ends it at its limits."""

import fcntl
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asympo.rewards.sandbox.calls import seccomp_filter

_INSIDE = Path(__file__).with_name("inside.py")
_SYSTEM_PATHS = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"),
    *("/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom"),
)
_MAX_VERDICT_BYTES = 2**20
_MAX_FILES = 64
_START_SECONDS = 30.0
"""Until an interpreter is shut in and the program begins, however busy the machine is."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use."""

    seconds: float = 5.0
    """By the clock, from when the program begins: starting the interpreter does not count."""
    memory_bytes: int = 2**29
    """Of address space, the interpreter's own included."""
    output_bytes: int = 2**16
    """Of standard output and standard error together."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a program ended."""

    is_done: bool
    """Whether it ran to its end, its tests included."""
    reason: str = ""
    """Why it did not, in one sentence for people."""
    seconds: float = 0.0
    """How long it ran."""
    output: str = ""
    """What it wrote to standard output."""
    failures: list[str | None] = field(default_factory=list)
    """Of each test why it failed, None where it passed; empty unless the program is done."""


def run_program(source: str, *, limits: Limits, tests: Sequence[str] = (), standard_input: str = "") -> Ended:
    """Runs the program, then the tests in its namespace. Raises TimeoutError if it could not even begin."""
    nonce = secrets.token_hex(16)
    settings = {
        "program": source,
        "tests": bool(tests),
        "filter": seccomp_filter().hex(),
        "readable": [sys.prefix, sys.base_prefix, *_SYSTEM_PATHS],
        "limits": {
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_CPU": int(limits.seconds) + 2,
            "RLIMIT_CORE": 0,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": _MAX_FILES,
        },
    }
    job = _sealed(json.dumps(settings) + "\n" + json.dumps({"nonce": nonce, "tests": list(tests)}) + "\n")
    given = _sealed(standard_input)
    verdict_here, verdict_there = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_INSIDE), str(job), str(verdict_there)],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(job, verdict_there),
            cwd="/",
            env=environment(),
        )
    except BaseException:
        os.close(verdict_here)
        raise
    finally:
        for descriptor in (job, given, verdict_there):
            os.close(descriptor)
    return _follow(process, verdict_here, nonce=nonce, has_tests=bool(tests), limits=limits)


def environment() -> dict[str, str]:
    """What a program finds: nothing of ours but where the interpreter's libraries are."""
    own = {
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return own | {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}


def _sealed(text: str) -> int:
    """A file in memory that nobody can change any more, to be read from its beginning."""
    descriptor = os.memfd_create("asympo", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(text.encode("utf-8", "replace"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _follow(
    process: "subprocess.Popen[bytes]", verdict_pipe: int, *, nonce: str, has_tests: bool, limits: Limits
) -> Ended:
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = (process.stdout.fileno(), process.stderr.fileno(), verdict_pipe)
    try:
        (output, errors, verdict), seconds, reason = _read(*pipes, limits=limits)
    finally:
        # It has no children: it cannot make any.
        process.kill()
        code = process.wait()
        process.stdout.close()
        process.stderr.close()
        os.close(verdict_pipe)
    text = output.decode("utf-8", "replace")
    told = _parsed(verdict)
    if not reason and "refused" in told:
        reason = str(told["refused"])
    if not reason and code != 0:
        reason = _how_it_died(code, errors.decode("utf-8", "replace"))
    if not reason and has_tests and told.get("nonce") != nonce:
        reason = "the program ends before its tests"
    if reason:
        return Ended(is_done=False, reason=reason, seconds=seconds, output=text)
    return Ended(is_done=True, seconds=seconds, output=text, failures=told.get("failures", []))


def _read(output: int, errors: int, verdict: int, *, limits: Limits) -> tuple[list[bytes], float, str]:
    """What comes through each pipe until all have ended or a limit is reached, for how long, and which limit.

    The time begins with the first byte of the verdict, which is written before the program runs.
    """
    began, deadline = None, time.monotonic() + _START_SECONDS
    received = {output: b"", errors: b"", verdict: b""}
    written, told = ((output, errors), limits.output_bytes), ((verdict,), _MAX_VERDICT_BYTES)
    reason = ""
    with selectors.DefaultSelector() as selector:
        for descriptor in received:
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map() and not reason:
            remaining_seconds = deadline - time.monotonic()
            if remaining_seconds <= 0:
                if began is None:
                    raise TimeoutError(
                        f"no interpreter was ready to run a program within {_START_SECONDS:g} s"
                    )
                reason = f"the program took more than {limits.seconds:g} s"
                break
            for key, _ in selector.select(remaining_seconds):
                data = os.read(key.fd, 65536)
                pipes, allowed = told if key.fd == verdict else written
                room = allowed - sum(len(received[pipe]) for pipe in pipes)
                received[key.fd] += data[:room]
                if not data:
                    selector.unregister(key.fd)
                elif len(data) > room:
                    reason = f"the program wrote more than {allowed} bytes"
            if began is None and received[verdict]:
                began = time.monotonic()
                deadline = began + limits.seconds
    seconds = 0.0 if began is None else time.monotonic() - began
    return list(received.values()), seconds, reason


def _parsed(verdict: bytes) -> dict[str, Any]:
    """Empty unless there is exactly one verdict: the program may have written there itself."""
    try:
        told = json.loads(verdict)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _how_it_died(code: int, errors: str) -> str:
    if code < 0:
        return f"the program was killed by {signal.Signals(-code).name}"
    last = errors.strip().splitlines()[-1:] or [f"exit code {code}"]
    return f"the program ended with {last[0][:200]}"
