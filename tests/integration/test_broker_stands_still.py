"""Services that are told to stop while their broker neither answers nor hangs up."""

import functools
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from asympo.local.broker import LocalBroker
from asympo.local.ports import free_port
from asympo.local.process import Process

from tests.integration.gateway.conftest import TOKENS
from tests.integration.generator.harness import LearnerSide

SERVICES = ("generator", "gateway", "evaluator")
DRAIN_SECONDS = 1.0
WITHIN_SECONDS = DRAIN_SECONDS + 15.0
"""Far below the 90 s after which one broker call gives up; a busy machine is slow to start and to end."""


@pytest.fixture
def learner(own_broker: LocalBroker, run_name: str, tmp_path: Path) -> Iterator[LearnerSide]:
    """Of a run whose generators have work."""
    side = LearnerSide(url=own_broker.url, run=run_name, root=tmp_path, sampling={"max_tokens": 10_000})
    side.create().publish(0)
    yield side
    own_broker.send(signal.SIGCONT)
    side.close()


def start(service: str, learner: LearnerSide, directory: Path) -> Process:
    port = free_port()
    command = [sys.executable, "-m", "asympo.cli", service, "--run", learner.run, "--redis-url", learner.url]
    command += ["--http-port", str(port)]
    if service == "gateway":
        (directory / "producers.toml").write_text(TOKENS)
        command += ["--producers", str(directory / "producers.toml")]
    else:
        command += ["--checkpoint-root", str(directory), "--engine", "simulated"]
        command += ["--simulated.seconds-per-token", "0.02", "--simulated.length-mean-tokens", "5000"]
    if service == "evaluator":
        command += ["--evals", '[{"max_prompts": 4}]']
    else:
        command += ["--grpc-port", "0", "--drain-seconds", str(DRAIN_SECONDS)]
    return Process(command=command, log_path=directory / f"{service}-{port}.log").start()


def serves(process: Process) -> bool:
    return "http on" in process.log


@pytest.mark.timeout(170)
def test_services_end_soon_after_they_are_told_to(
    learner: LearnerSide, own_broker: LocalBroker, tmp_path: Path
) -> None:
    at_work = [start(service, learner, tmp_path) for service in SERVICES]
    joining: list[Process] = []
    try:
        stats = learner.run_log.stats
        at_work[0].until(lambda: stats.read().leases >= 1, seconds=60)
        at_work[1].until(lambda: '"Joined run' in at_work[1].log, seconds=60)
        own_broker.send(signal.SIGSTOP)
        joining += [start(service, learner, tmp_path) for service in SERVICES]
        for process in (*joining, at_work[2]):
            process.until(functools.partial(serves, process), seconds=60)
        asked_at = time.monotonic()
        for process in (*at_work, *joining):
            process.send(signal.SIGTERM)
        for process in (*at_work, *joining):
            left_seconds = WITHIN_SECONDS - (time.monotonic() - asked_at)
            assert process.wait(max(0.0, left_seconds)) == 0, process.log
            assert "Traceback" not in process.log
    finally:
        for process in (*at_work, *joining):
            process.kill()
