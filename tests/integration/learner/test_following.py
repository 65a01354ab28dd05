"""A second learner on the same log: it trains along, and the run does not know."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asympo.learner.state import StateStore

from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.producer import Producer
from tests.integration.learner.test_learner_process import final_digests, state_bytes

STEPS = 9


def follow(url: str, root: Path, run: str, out: Path, *flags: str) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable,
        "-m",
        "asympo.cli",
        "log",
        "follow",
        "--run",
        run,
        "--redis-url",
        url,
        "--json",
    ]
    return subprocess.Popen(
        [*command, "--redis-url", url, "--checkpoint-root", str(root), "--out", str(out), *flags],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def report_of(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    report: dict[str, Any] = json.loads(out)
    return report


@pytest.mark.timeout(400)
def test_follower_trains_another_objective_and_the_run_ends_with_the_same_weights(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    runs = (f"{run_name}-a", f"{run_name}-b")
    flags = ("--total-steps", str(STEPS), "--retain")
    alone, followed = (
        LearnerProcess(url=broker_url, run=run, root=tmp_path, model=tiny_model, flags=flags) for run in runs
    )
    with Producer(url=broker_url, run=runs[0]):
        assert alone.start().wait() == 0, alone.log
    with Producer(url=broker_url, run=runs[1]):
        followed.start()
        followed.until(lambda: followed.reached(4))
        spo = ("--objective", "spo")
        follower = follow(broker_url, tmp_path, runs[1], tmp_path / "spo", *spo)
        assert followed.wait() == 0, followed.log
    assert report_of(follower)["step"] == STEPS
    assert final_digests(tmp_path, runs[0]) == final_digests(tmp_path, runs[1])
    assert state_bytes(tmp_path, runs[0]) == state_bytes(tmp_path, runs[1])
    own = StateStore(tmp_path / "spo", runs[1])
    newest = own.newest()
    assert newest is not None
    assert own.read(newest).step == STEPS
    spo_bytes, run_bytes = state_bytes(tmp_path / "spo", runs[1]), state_bytes(tmp_path, runs[1])
    assert spo_bytes.keys() == run_bytes.keys()
    assert spo_bytes != run_bytes

    # Without another objective it is the same training, from the archive alone; killed on the way.
    same = tmp_path / "same"
    first = follow(broker_url, tmp_path, runs[1], same, "--until-step", "4")
    assert report_of(first)["step"] == 4
    second = follow(broker_url, tmp_path, runs[1], same)
    while not list((same / runs[1] / "train").glob("step-00000007-*")):
        assert second.poll() is None
    second.send_signal(signal.SIGKILL)
    second.communicate()
    assert report_of(follow(broker_url, tmp_path, runs[1], same))["step"] == STEPS
    assert state_bytes(same, runs[1]) == run_bytes
