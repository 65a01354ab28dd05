"""`asympo run` from end to end with every real part but the engine, which is the simulated one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

SUMMARY_KEYS = {
    "held_out_accuracy_before",
    "held_out_accuracy_after",
    "steps",
    "wall_seconds",
    "reloads",
    "probe_failures",
    "requests_lost",
    "groups_trained_twice",
    "peak_rss_bytes_total",
}


class RunProcess:
    """One `asympo run` in a process of its own."""

    def __init__(self, config: Path, *flags: str) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
        command = [sys.executable, "-m", "asympo.cli", "run", str(config), "--view.kind=plain", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    def service(self, name: str) -> psutil.Process:
        """The running process of a service."""
        for child in psutil.Process(self.process.pid).children():
            if "asympo.cli" in child.cmdline() and any(name in word for word in child.cmdline()):
                return child
        raise LookupError(name)

    def finish(self, seconds: float = 120) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, output


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
        [run]
        name = "tiny"
        directory = "{tmp_path}/runs"
        model = "{tiny_model}"
        max_evaluation_prompts = 8
        [run.sampling]
        max_tokens = 6
        [learner]
        group_size = 4
        groups_per_step = 2
        total_steps = 2000
        save_every = 4
        [generator]
        engine = "simulated"
        """
    )
    return path


@pytest.fixture
def started() -> Iterator[list[RunProcess]]:
    processes: list[RunProcess] = []
    yield processes
    for run in processes:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()


def last_step(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def wait_for(condition: Callable[[], object], run: RunProcess, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.process.poll() is None, run.process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.timeout(400)
def test_run_survives_an_interrupt_and_kills_and_trains_nothing_twice(
    config: Path, tmp_path: Path, started: list[RunProcess]
) -> None:
    directory = tmp_path / "runs" / "tiny"
    first = RunProcess(config)
    started.append(first)
    wait_for(lambda: last_step(directory) >= 2, first)
    first.process.send_signal(signal.SIGINT)
    code, output = first.finish()
    assert code == 130, output
    assert "start it again the same way" in output
    reached = json.loads((directory / "run.json").read_text())["step"]
    assert reached >= 2

    second = RunProcess(config, f"--learner.total-steps={reached + 30}")
    started.append(second)
    wait_for(lambda: last_step(directory) > reached + 1, second)
    second.service("learner.toml").kill()
    second.service("generator-0.toml").kill()
    code, output = second.finish(240)
    assert code == 0, output
    assert "learner was killed by SIGKILL; starting it again" in output

    summary = json.loads((directory / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["steps"] == reached + 30
    assert summary["groups_trained_twice"] == 0
    assert summary["restarts"] >= 2
    assert summary["starts"] == 2
    assert summary["held_out_policy_step_after"] == reached + 30
    assert summary["peak_rss_bytes_total"] > 2**28
    assert (directory / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]
