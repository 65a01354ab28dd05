"""Generator processes as a person starts them."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.generator.harness import LearnerSide, settings_for

COMMAND = [sys.executable, "-c", "import sys; from asympo.cli import main; sys.exit(main())", "generator"]


def until(condition: Callable[[], Any], *, timeout_seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.02)
    return value


class Processes:
    """Generator processes of one test, with their log files."""

    def __init__(self, *, learner: LearnerSide, directory: Path) -> None:
        self._learner = learner
        self._directory = directory
        self.started: list[subprocess.Popen[bytes]] = []

    def log_of(self, holder: str) -> str:
        return (self._directory / f"{holder}.log").read_text()

    def start(self, holder: str, **changes: Any) -> "subprocess.Popen[bytes]":
        """A generator that samples slowly enough to be interrupted."""
        simulated = {"seconds_per_token": 0.02, "length_kind": "fixed"} | changes.pop("simulated", {})
        settings = settings_for(self._learner, holder=holder, simulated=simulated, **changes)
        config = self._directory / f"{holder}.toml"
        config.write_text(settings.to_toml(redact=False))
        with (self._directory / f"{holder}.log").open("wb") as output:
            process = subprocess.Popen(
                [*COMMAND, "--config", str(config)], stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        self.started.append(process)
        return process

    def close(self) -> None:
        """Kill what still runs."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
