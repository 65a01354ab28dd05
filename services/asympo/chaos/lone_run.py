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

from asympo.chaos.volume import Volume
from asympo.common.checkpoints.names import parse_name
from asympo.local.ports import free_port
from asympo.run.audit import count_trained_twice, effective_steps, read_rows
from asympo.run.report.page import how_it_ended
from asympo.testing.tiny_model import write_tiny_model

_STEP_SECONDS = 300.0
_DRAIN_SECONDS = 30.0
_END_SECONDS = 300.0
_POLL_SECONDS = 0.1
_LAST_LINES = 5
_EXPLAINED = (
    "stopped at step",
    "failed at step",
    "finished at step",
    "all of its services have ended",
    "without a word",
    "MB left",
    "Input/output error",
)


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
    BOTH = "guard-and-supervisor"
    SERVICE = "service"
    MOVED = "moved"
    FULL = "full-disk"
    FAILED = "failed-disk"
    READ_ONLY = "read-only-disk"
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
_TO_SERVICES = (*_SIGNALS.values(), signal.SIGABRT, signal.SIGUSR1, signal.SIGPIPE)
_ON_VOLUME = frozenset({End.FULL, End.FAILED, End.READ_ONLY})
_VOLUME_MB = 320


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
    left_out: list[str] = field(default_factory=list)
    """What this machine does not allow, and why."""

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
        why_not = Volume.why_not(directory / "probe")
        self._volume = None if why_not else Volume(directory, size_mb=_VOLUME_MB)
        self._kinds = [kind for kind in End if self._volume or kind not in _ON_VOLUME]
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._terminal = -1
        self._reader: threading.Thread | None = None
        self._is_read = threading.Event()
        self.report = Report(seed=seed)
        if why_not:
            self.report.left_out = [f"{kind.value}: {why_not}" for kind in sorted(_ON_VOLUME)]

    @property
    def path(self) -> Path:
        return self._parent / "run"

    def endure(self, *, num_ends: int, until: float | None) -> Report:
        """So many ends, or as many as fit into the time."""
        begun, kinds = time.monotonic(), list[End]()
        while time.monotonic() < until if until else sum(self.report.ends.values()) < num_ends:
            # Each kind once, in an order of its own, before any comes again.
            kinds = kinds or self._random.sample(self._kinds, len(self._kinds))
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
            self._refused("--run.keep-free-mb=1e12", said="make room")
        elif kind is End.UNWRITABLE:
            self._refused(f"--run.directory={self._server}/runs", said="give another path")
        elif kind in _ON_VOLUME:
            self._meet_volume(kind)
        elif kind is End.MOVED:
            self._move(self._root / f"moved {self._random.randrange(10**6)} 100% #?é")
            self._live_and_end(End.SIGTERM)
        else:
            if kind is End.OTHER_BROKER and self.path.exists():
                self._pretend_server("7.0.15")
            self._live_and_end(kind)
            self._pretend_server("6.2.0")

    def _meet_volume(self, kind: End) -> None:
        """On a disk of its own, moved there for this end and away from it afterwards."""
        volume, before = self._volume, self._parent
        assert volume is not None
        volume.mount()
        try:
            self._move(volume.path / "runs")
            if kind is End.READ_ONLY:
                volume.unmount()
                volume.mount(is_read_only=True)
                self._refused(said="give another")
                volume.unmount()
                volume.mount()
            else:
                self._live_and_end(kind)
            self._move(before)
        finally:
            volume.unmount()

    def _move(self, parent: Path) -> None:
        parent.mkdir(exist_ok=True)
        if self.path.exists():
            # Unlike shutil, it moves the broker's socket to another disk as well.
            subprocess.run(["mv", self.path, parent / "run"], check=True)
            if self._volume is not None and parent.is_relative_to(self._volume.path):
                # Nobody else syncs what was copied, and a disk that fails keeps only what was.
                subprocess.run(["sync", "--file-system", parent], check=True)
        self._parent = parent

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
        psutil.wait_procs(left)
        self._mend(kind)
        lost = committed - self._committed()
        if lost > 0:
            self.report.steps_lost += lost
            self.report.problems.append(f"{kind.value}: {lost} committed steps are gone")
        lines = self._last_lines()
        if kind in _ON_VOLUME:
            # A disk that holds nothing more holds no last words either.
            lines = self._console().splitlines()[-_LAST_LINES:]
        elif kind is End.BOTH:
            # Nobody was left to write any: whoever asks is told so.
            lines = [how_it_ended(self.path)[1]]
        if not any(said in line for line in lines for said in _EXPLAINED):
            self.report.problems.append(f"{kind.value}: its last lines do not say why it ended: {lines}")

    def _mend(self, kind: End) -> None:
        if self._volume is not None and kind is End.FULL:
            self._volume.make_room()
        elif self._volume is not None and kind is End.FAILED:
            self._volume.replace()

    def _end(self, kind: End, process: subprocess.Popen[bytes], family: list[psutil.Process]) -> None:
        if kind in _SIGNALS:
            process.send_signal(_SIGNALS[kind])
        elif self._volume is not None and kind is End.FULL:
            self._volume.fill()
        elif self._volume is not None and kind is End.FAILED:
            self._volume.fail()
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
                        each.send_signal(number)
        elif kind is End.BOTH:
            _named(family, "asympo.run.processes.guard")[0].kill()
            process.kill()
        elif kind is End.GUARD:
            _named(family, "asympo.run.processes.guard")[0].kill()
            self._until(lambda: "guard of this run was killed" in self._console(), "notice", 60)
            family += psutil.Process(process.pid).children(recursive=True)
            process.kill()
        else:
            if kind is End.SERVICE:
                number = self._random.choice(_TO_SERVICES)
                named = [each for each in family[1:] if _is_service(each)]
                victim = self._random.choice(named)
                self._say(f"{number.name} to {' '.join(victim.cmdline())[-80:]}")
                victim.send_signal(number)
                step = self._last_step()
                # One that was asked to stop does, and the run with it.
                self._until(
                    lambda: self._last_step() > step + 1 or process.poll() is not None,
                    "go on without it",
                    _STEP_SECONDS,
                )
                if process.poll() is not None:
                    return
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
        # A broker whose disk is gone never comes back, and the learner waits for it until then.
        lines += [f"drain_seconds = {_DRAIN_SECONDS:g}", f"http_port = {self._port}"]
        lines += ["[generator]", 'engine = "simulated"']
        path.write_text("\n".join(lines) + "\n")
        return path

    def _pretend_server(self, version: str) -> None:
        """A `redis-server` on the PATH that only says its version: not the one that wrote the log."""
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
    # Ignored where this command itself runs under nohup or in the background, and a run would inherit that.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def _is_service(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        words = process.cmdline()
        return "asympo.cli" in words or process.name().endswith("-server")
    return False


def _named(processes: list[psutil.Process], module: str) -> list[psutil.Process]:
    found = []
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if module in each.cmdline():
                found.append(each)
    return found
