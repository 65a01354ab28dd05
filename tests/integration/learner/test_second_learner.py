"""A second learner on the same log: it trains along, and the run does not know."""

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from asympo.learner.replay.archive_replay import Replay
from asympo.learner.state.open import open_states

from tests.forked import ForkedPython
from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.producer import Producer
from tests.integration.learner.test_learner_process import state_bytes

STEPS = 9
OTHER_SETTINGS = ("--weight-decay", "0.3", "--beta1", "0.8", "--max-row-tokens", "15")
"""Of the learner that ends the run."""


def follow(
    url: str,
    root: Path,
    run: str,
    out: Path,
    *flags: str,
    launcher: tuple[str, ...] = ("-m", "asympo.cli"),
) -> tuple[ForkedPython, Path]:
    """A follower, and where its report will be."""
    command = [sys.executable, *launcher, "log", "follow", "--run", run, "--redis-url", url, "--json"]
    command += ["--checkpoint-root", str(root), "--out", str(out), *flags]
    report = out.with_suffix(".report")
    return ForkedPython(command, output=report, errors=out.with_suffix(".log"), environment={}), report


def report_of(follower: tuple[ForkedPython, Path]) -> dict[str, Any]:
    process, path = follower
    assert process.wait(120) == 0
    report: dict[str, Any] = json.loads(path.read_text())
    return report


@pytest.mark.timeout(400)
def test_follower_trains_another_objective_and_the_run_ends_with_the_same_weights(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    run = run_name
    flags = ("--total-steps", str(STEPS), "--retain")
    learner = LearnerProcess(url=broker_url, run=run, root=tmp_path, model=tiny_model, flags=flags)
    with Producer(url=broker_url, run=run):
        learner.start()
        learner.until(lambda: learner.reached(4))
        follower = follow(broker_url, tmp_path, run, tmp_path / "spo", "--objective", "spo")
        assert learner.end(signal.SIGTERM) == 0, learner.log
        assert learner.start(*OTHER_SETTINGS).wait() == 0, learner.log
    assert report_of(follower)["step"] == STEPS
    undisturbed = Replay(checkpoint_root=tmp_path, run=run, from_state=None, any_build=False).run()
    assert (undisturbed.weights_identical, undisturbed.steps) == (True, STEPS)
    own = open_states(tmp_path / "spo", run)
    newest = own.newest()
    assert newest is not None
    assert own.read(newest).step == STEPS
    spo_bytes, run_bytes = state_bytes(tmp_path / "spo", run), state_bytes(tmp_path, run)
    assert spo_bytes.keys() == run_bytes.keys()
    assert spo_bytes != run_bytes

    # Without another objective it is the same training, from the archive alone; killed on the way.
    same = tmp_path / "same"
    killed, _ = follow(broker_url, tmp_path, run, same)
    while not list((same / run / "train").glob("step-00000006-*")):
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert report_of(follow(broker_url, tmp_path, run, same))["step"] == STEPS
    assert state_bytes(same, run) == run_bytes
