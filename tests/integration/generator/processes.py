"""Generator processes as a person starts them."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asympo.local.process import Process

from tests.integration.generator.harness import LearnerSide, settings_for

COMMAND = [sys.executable, "-m", "asympo.cli", "generator"]


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
        self._started: list[Process] = []

    def start(self, holder: str, **changes: Any) -> Process:
        """A generator that samples slowly enough to be interrupted."""
        simulated = {"seconds_per_token": 0.02, "length_kind": "fixed"} | changes.pop("simulated", {})
        settings = settings_for(self._learner, holder=holder, simulated=simulated, **changes)
        config = self._directory / f"{holder}.toml"
        config.write_text(settings.to_toml(redact=False))
        process = Process(
            command=[*COMMAND, "--config", str(config)], log_path=self._directory / f"{holder}.log"
        )
        self._started.append(process.start())
        return process

    def close(self) -> None:
        """Kill what still runs."""
        for process in self._started:
            process.kill()
