"""`asympo learner` as a process of its own, on one rank or under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asympo.common.jsonl import read_steps

from tests.conftest import free_port
from tests.integration.learner.producer import GROUP_SIZE

START_SECONDS = 90.0


STARTED: list[subprocess.Popen[bytes]] = []


class LearnerProcess:
    """`asympo learner` on ports of its own."""

    def __init__(
        self,
        *,
        url: str,
        run: str,
        root: Path,
        model: Path,
        flags: tuple[str, ...] = (),
        launcher: tuple[str, ...] = ("-m", "asympo.cli", "learner"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.http_port, self.grpc_port = free_port(), free_port()
        self.root, self.run = root, run
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        self._log = root / f"{run}-learner.log"
        root.mkdir(parents=True, exist_ok=True)
        self._command = [
            *(sys.executable, *launcher, "--run", run, "--redis-url", url),
            *("--checkpoint-root", str(root), "--model", str(model), "--num-threads", "1"),
            *("--group-size", str(GROUP_SIZE), "--groups-per-step", "3", "--save-every", "3"),
            *("--compute-dtype", "float32", "--learning-rate", "1e-3", "--token-budget", "64"),
            *("--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port), "--show-samples"),
            *("--log-format", "text", *flags),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *flags: str) -> "LearnerProcess":
        with self._log.open("ab") as out:
            self.process = subprocess.Popen(
                [*self._command, *flags], stdout=out, stderr=subprocess.STDOUT, env=self._environment
            )
        STARTED.append(self.process)
        return self

    def stop(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def wait(self, seconds: float = START_SECONDS) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def until(self, condition: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            if value := condition():
                return value
            assert self.process.poll() is None, self.log
            time.sleep(0.02)
        raise AssertionError(f"no such state within {seconds} s: {self.log}")

    def kill_rank(self, rank: int) -> None:
        """SIGKILL for one of torchrun's children."""
        assert self.process is not None
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended meanwhile
            if parent == self.process.pid and f"RANK={rank}".encode() in environment:
                os.kill(int(path.name), signal.SIGKILL)
                return
        raise AssertionError(f"rank {rank} is not running: {self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text()[-4000:]

    def count(self, words: str) -> int:
        """How often it has said this since its first start."""
        return self._log.read_text().count(words)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_steps(self.root / self.run / "metrics.jsonl")

    def reached(self, step: int) -> bool:
        rows = self.rows
        return bool(rows) and rows[-1]["step"] >= step

    def get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return json.load(answer) if path.startswith("/v1") else answer.read().decode()
        except OSError:
            return None
