"""The cluster's own programs: started with a log each, waited for, told about when they end."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_POLL_SECONDS = 0.2


class ClusterFault(Exception):
    """A part of the cluster does not come up, or went down."""


class Processes:
    """Programs that run until the cluster ends."""

    def __init__(self, logs: Path, *, path: Sequence[Path], environment: Mapping[str, str]) -> None:
        """`path`: folders that come before the machine's own."""
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self.environment = {**os.environ, **environment}
        self.environment["PATH"] = os.pathsep.join([*map(str, path), os.environ["PATH"]])
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Runs a program in the background."""
        with (self._logs / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [name, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def run(self, *command: str, timeout_seconds: float = 60.0, given: bytes = b"") -> str:
        """Runs a program to its end and returns what it said; raises ClusterFault when it failed."""
        try:
            result = subprocess.run(
                command,
                env=self.environment,
                input=given,
                capture_output=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ClusterFault(f"{' '.join(command)}: not done within {timeout_seconds:g} s") from error
        if result.returncode != 0:
            raise ClusterFault(f"{' '.join(command)}: {result.stderr.decode(errors='replace').strip()}")
        return result.stdout.decode(errors="replace")

    def until(self, what: str, condition: Callable[[], object], *, limit_seconds: float = 240.0) -> None:
        """Waits until a condition holds; a ClusterFault or a refused connection means not yet."""
        deadline = time.monotonic() + limit_seconds
        last = ""
        while True:
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise ClusterFault(f"{name} ended with {process.returncode}:\n{self.last_lines(name)}")
            try:
                if condition():
                    return
            except (ClusterFault, OSError) as error:
                last = str(error)
            if time.monotonic() > deadline:
                raise ClusterFault(f"{what}: not within {limit_seconds:g} s; last: {last}")
            time.sleep(_POLL_SECONDS)

    def last_lines(self, name: str, num: int = 15) -> str:
        """The end of a program's log."""
        return "\n".join((self._logs / f"{name}.log").read_text(errors="replace").splitlines()[-num:])

    def stop(self) -> None:
        """Ends them, the last started first."""
        for process in reversed(self._running.values()):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
