"""`python -m asympo.cli …` forked from a process that has imported torch: four seconds less.

It is a process like any other: its own session, output and environment, killed and waited for by its number.
What it shares with its siblings is the seed of Python's hashes; fleets and chaos start theirs from nothing.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["asympo.learner.app", "asympo.learner.build"])
_READ_AT_IMPORT = ("ATEN_", "LD_", "MKL_", "OMP_", "ONEDNN_", "PYTHONHASHSEED")


def can_fork(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether it is Python's own, and asks for nothing that libraries read when they are loaded."""
    is_python = command[0] == sys.executable and command[1:3] != ["-m", "torch.distributed.run"]
    return is_python and not any(
        name.startswith(_READ_AT_IMPORT) and os.environ.get(name) != value
        for name, value in environment.items()
    )


class ForkedPython:
    """`python -m MODULE …` or `python -c CODE …`, with what is asked of `subprocess.Popen`."""

    def __init__(
        self, command: Sequence[str], *, output: Path, errors: Path, environment: Mapping[str, str]
    ) -> None:
        here, there = _CONTEXT.Pipe(duplex=False)
        arguments = (list(command), str(output), str(errors), {**os.environ, **environment}, there)
        self._process = _CONTEXT.Process(target=_run, args=arguments)
        self._process.start()
        there.close()
        # Only now it leads a session of its own, and a kill reaches what it starts.
        here.recv()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, seconds or 0.0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(
    command: list[str], output: str, errors: str, environment: dict[str, str], started: Connection
) -> None:
    os.setsid()
    for stream, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    started.send(None)
    started.close()
    kind, what, *arguments = command[1:]
    sys.argv = [what if kind == "-m" else "-c", *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
