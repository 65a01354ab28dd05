"""`asympo chaos --mode run`: one run on this machine, ended in every way a supervisor can end.

After each end: is anything left running, is anything lost that was committed, do the last lines say why?
"""

import contextlib
import fcntl
import json
import os
import pty
import random
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from asympo.common.checkpoints.names import parse_name
from asympo.local.ports import free_port
from asympo.run.audit import count_trained_twice, effective_steps, read_rows
from asympo.testing.tiny_model import write_tiny_model

_STEP_SECONDS = 300.0
_END_SECONDS = 300.0
_POLL_SECONDS = 0.1
_LAST_LINES = 5
_EXPLAINED = ("stopped at step", "failed at step", "finished at step", "all of its services have ended")


class End(StrEnum):
    """How a supervisor ends, or what it meets when it is started again."""

    SIGINT = "sigint"
    SIGTERM = "sigterm"
    SIGHUP = "sighup"
    SIGKILL = "sigkill"
    SIGSEGV = "sigsegv"
    SIGQUIT = "sigquit"
    TERMINAL = "terminal"
    TWICE = "twice"
    SESSION = "session"
    GUARD = "guard"
    SERVICE = "service"
    MOVED = "moved"
    NO_ROOM = "no-room"
    UNWRITABLE = "unwritable"
    OTHER_BROKER = "other-broker"


_SIGNALS = {
    End.SIGINT: signal.SIGINT,
    End.SIGTERM: signal.SIGTERM,
    End.SIGHUP: signal.SIGHUP,
    End.SIGKILL: signal.SIGKILL,
    End.SIGSEGV: signal.SIGSEGV,
    End.SIGQUIT: signal.SIGQUIT,
}


@dataclass(kw_only=True)
class Report:
    """What was counted."""

    seed: int
    ends: Counter[str] = field(default_factory=Counter)
    orphans: int = 0
    steps_lost: int = 0
    trained_twice: int = 0
    groups_trained: int = 0
    steps: int = 0
    log_bytes: int = 0
    wall_seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"mode": "run", "num_ends": sum(self.ends.values()), **vars(self), "ends": dict(self.ends)}


class LoneRun:
    """The run, its directory, and what was seen of it."""

    def __init__(self, *, directory: Path, seed: int, say: Callable[[str], None]) -> None:
        self._root, self._say = directory, say
        self._random = random.Random(seed)
        self._parent = directory / "runs"
        directory.mkdir(parents=True, exist_ok=True)
        self._model = write_tiny_model(directory / "model")
        self._server = directory / "bin" / "redis-server"
        self._server.parent.mkdir(parents=True)
        self._pretend_server("6.2.0")
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal = -1
        self._reader: threading.Thread | None = None
        self._is_read = threading.Event()
        self.report = Report(seed=seed)

    @property
    def path(self) -> Path:
        return self._parent / "run"

    def endure(self, *, num_ends: int, until: float | None) -> Report:
        """So many ends, or as many as fit into the time."""
        begun, kinds = time.monotonic(), list[End]()
        while time.monotonic() < until if until else sum(self.report.ends.values()) < num_ends:
            # Each kind once, in an order of its own, before any comes again.
            kinds = kinds or self._random.sample(list(End), len(End))
            kind = kinds.pop()
            self._say(f"end {sum(self.report.ends.values()) + 1}: {kind.value}")
            self.meet(kind)
            self.report.ends[kind.value] += 1
            # Hours of it must not be lost with whoever waits for the end.
            (self._root / "report.json").write_text(json.dumps(self.report.to_dict(), indent=1) + "\n")
        twice, self.report.groups_trained = count_trained_twice(self.path / "trained.jsonl")
        self.report.trained_twice = twice
        self.report.steps = self._last_step()
        self.report.log_bytes = sum(path.stat().st_size for path in (self.path / "logs").iterdir())
        self.report.wall_seconds = round(time.monotonic() - begun, 1)
        return self.report

    def meet(self, kind: End) -> None:
        """One end, and what is seen of it."""
        if kind is End.NO_ROOM:
            self._refused("--run.keep-free-mb=1e12", said="free some")
        elif kind is End.UNWRITABLE:
            self._refused(f"--run.directory={self._server}/runs", said="give another path")
        elif kind is End.MOVED:
            moved = self._root / f"moved {self._random.randrange(10**6)} 100% #?é"
            moved.mkdir()
            if self.path.exists():
                shutil.move(self.path, moved / "run")
            self._parent = moved
            self._live_and_end(End.SIGTERM)
        else:
            if kind is End.OTHER_BROKER:
                self._pretend_server("7.0.15")
            self._live_and_end(kind)
            self._pretend_server("6.2.0")

    def _live_and_end(self, kind: End) -> None:
        committed, aim = self._committed(), self._last_step() + self._random.randint(1, 5)
        self._start()
        process = self._process
        assert process is not None
        self._until(lambda: self._last_step() > aim or process.poll() is not None, "go on", _STEP_SECONDS)
        if process.poll() is not None:
            self.report.problems.append(f"{kind.value}: it did not go on: {self._last_lines()}")
            return
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        self._end(kind, process, family)
        self._until(lambda: process.poll() is not None, "end", _END_SECONDS)
        _, left = psutil.wait_procs(family, timeout=_END_SECONDS)
        self.report.orphans += len(left)
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.report.problems.append(f"{kind.value}: left behind: {' '.join(each.cmdline())[:200]}")
                each.kill()
        lost = committed - self._committed()
        if lost > 0:
            self.report.steps_lost += lost
            self.report.problems.append(f"{kind.value}: {lost} committed steps are gone")
        lines = self._last_lines()
        if not any(said in line for line in lines for said in _EXPLAINED):
            self.report.problems.append(f"{kind.value}: its last lines do not say why it ended: {lines}")

    def _end(self, kind: End, process: subprocess.Popen[bytes], family: list[psutil.Process]) -> None:
        if kind in _SIGNALS:
            process.send_signal(_SIGNALS[kind])
        elif kind is End.TERMINAL:
            self._close_terminal()
        elif kind is End.TWICE:
            # As `timeout` does: to the process, and to its group.
            process.send_signal(signal.SIGTERM)
            os.killpg(process.pid, signal.SIGTERM)
        elif kind is End.SESSION:
            for number in (signal.SIGTERM, signal.SIGHUP):
                for each in family:
                    # Whoever is quick has ended by the second one.
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if "server" not in each.name():
                            each.send_signal(number)
        elif kind is End.GUARD:
            _named(family, "asympo.run.processes.guard")[0].kill()
            log = self.path / "logs" / "supervisor.log"
            self._until(lambda: "guard of this run was killed" in log.read_text(), "notice", 60)
            family += psutil.Process(process.pid).children(recursive=True)
            process.kill()
        else:
            if kind is End.SERVICE:
                self._random.choice(_named(family[1:], "asympo.cli")).kill()
                step = self._last_step()
                self._until(lambda: self._last_step() > step + 1, "go on without it", _STEP_SECONDS)
                family += psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)

    def _refused(self, *flags: str, said: str) -> None:
        self._start(*flags)
        process = self._process
        assert process is not None
        self._until(lambda: process.poll() is not None, "refuse", _END_SECONDS)
        last = self._console().strip().splitlines()[-1:]
        if process.returncode == 0 or not last or not (last[0].startswith("asympo: ") and said in last[0]):
            self.report.problems.append(f"{flags[0]}: it was not refused in a sentence: {last}")

    def _start(self, *flags: str) -> None:
        self._close_terminal()
        self._terminal, inside = pty.openpty()
        command = [sys.executable, "-m", "asympo.cli", "run", str(self._config()), *flags]
        self._process = subprocess.Popen(
            command,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**os.environ, "REDIS_URL": "", "PATH": f"{self._server.parent}:{os.environ['PATH']}"},
            start_new_session=True,
            preexec_fn=_sit_at_terminal,
        )
        os.close(inside)
        self._is_read = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self._terminal,), daemon=True)
        self._reader.start()

    def _read(self, terminal: int) -> None:
        with (self._root / "console.log").open("wb") as out:
            while not self._is_read.is_set():
                # A terminal that somebody reads from stays open, whoever closes it.
                if select.select([terminal], [], [], _POLL_SECONDS)[0]:
                    try:
                        out.write(os.read(terminal, 65536))
                        out.flush()
                    except OSError:
                        # Nobody is on the other side any more.
                        return

    def _close_terminal(self) -> None:
        if self._terminal >= 0 and self._reader is not None:
            self._is_read.set()
            self._reader.join()
            os.close(self._terminal)
            self._terminal = -1

    def _config(self) -> Path:
        path = self._root / "run.toml"
        values = {"name": "run", "directory": str(self._parent), "model": str(self._model), "evaluate": False}
        lines = ["[run]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
        lines += ["[run.sampling]", "max_tokens = 6", "[view]", 'kind = "plain"']
        lines += ["[learner]", "group_size = 4", "groups_per_step = 2", "save_every = 4"]
        lines += [f"http_port = {self._port}", "[generator]", 'engine = "simulated"']
        path.write_text("\n".join(lines) + "\n")
        return path

    def _pretend_server(self, version: str) -> None:
        """A `redis-server` on the PATH that only says its version: another one than wrote the log."""
        self._server.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0:0 bits=64'\n")
        self._server.chmod(0o755)

    def _last_step(self) -> int:
        return max(effective_steps(read_rows(self.path / "metrics.jsonl")), default=0)

    def _committed(self) -> int:
        found = [parse_name(path.name) for path in (self.path / "train").glob("step-*")]
        return max((name.step for name in found if name is not None), default=0)

    def _console(self) -> str:
        path = self._root / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _last_lines(self) -> list[str]:
        log = self.path / "logs" / "supervisor.log"
        return log.read_text(errors="replace").splitlines()[-_LAST_LINES:] if log.exists() else []

    def _until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self.report.problems.append(f"it did not {what} within {seconds:g} s: {self._last_lines()}")
                if self._process is not None:
                    self._process.kill()
                return
            time.sleep(_POLL_SECONDS)


def _sit_at_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Ignored where this command itself runs under nohup, and a run would inherit that.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _named(processes: list[psutil.Process], module: str) -> list[psutil.Process]:
    found = []
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if module in each.cmdline():
                found.append(each)
    return found
