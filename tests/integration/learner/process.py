"""`asympo learner` as a process of its own, on one rank or under torchrun."""

import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from asympo.common.jsonl import read_steps
from asympo.local.ports import free_port
from asympo.local.process import Process, import_path

from tests.forked import ForkedPython, can_fork
from tests.integration.learner.producer import GROUP_SIZE

START_SECONDS = 90.0
STARTED: list[Process] = []


class LearnerProcess(Process):
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
        command = [
            *(sys.executable, *launcher, "--run", run, "--redis-url", url),
            *("--checkpoint-root", str(root), "--model", str(model), "--num-threads", "1"),
            *("--group-size", str(GROUP_SIZE), "--groups-per-step", "3", "--save-every", "3"),
            *("--compute-dtype", "float32", "--learning-rate", "1e-3", "--token-budget", "64"),
            *("--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port), "--show-samples"),
            # Measuring what is faster takes a second of every start.
            *("--share-prefixes", "always", "--log-format", "text", *flags),
        ]
        super().__init__(
            command=command,
            log_path=root / f"{run}-learner.log",
            environment={"OMP_NUM_THREADS": "1", **(environment or {})},
        )

    def start(self, *more: str) -> Self:
        STARTED.append(self)
        command, environment = [*self.command, *more], {"PYTHONPATH": import_path(), **self.environment}
        if not can_fork(command, environment):
            return super().start(*more)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.exit_code = None
        self._log_begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._process = ForkedPython(  # type: ignore[assignment]  # it has all of a Popen that is asked for
            command, output=self.log_path, errors=self.log_path, environment=environment
        )
        return self

    def wait(self, seconds: float = START_SECONDS) -> int:
        return super().wait(seconds)

    def until(self, condition: Callable[[], Any], *, seconds: float = START_SECONDS, what: str = "") -> Any:
        return super().until(condition, seconds=seconds, what=what or "such state of the learner")

    def kill_rank(self, rank: int) -> None:
        """SIGKILL for one of torchrun's children."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it has ended meanwhile
            if parent == self.pid and f"RANK={rank}".encode() in environment:
                os.kill(int(path.name), signal.SIGKILL)
                return
        raise AssertionError(f"rank {rank} is not running: {self.log}")

    def count(self, words: str) -> int:
        """How often it has said this since its first start."""
        return self.log.count(words)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return read_steps(self.root / self.run / "metrics.jsonl")

    def reached(self, step: int) -> bool:
        rows = self.rows
        return bool(rows) and rows[-1]["step"] >= step

    def metric(self, name: str) -> float:
        """Of one without labels."""
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics") or "", re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return json.load(answer) if path.startswith("/v1") else answer.read().decode()
        except OSError:
            return None
