"""Choices are the run's: whoever trains its log has them, even where they would be others by now."""

import signal
from pathlib import Path

import pytest
import torch
from asympo.common.rollout_log import RunLog
from asympo.common.rollout_log.keys import key
from asympo.learner.replay.archive_replay import Replay
from asympo.learner.state.decision_files import open_decisions
from asympo.learner.step import trial

from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.producer import Producer
from tests.integration.learner.test_learner_process import state_bytes
from tests.integration.learner.test_replay import SMALL_MEMORY
from tests.integration.learner.test_second_learner import follow, report_of

STEPS = 6

TRIAL = """
import os, sys
from asympo.cli import main
from asympo.learner.step import trial

trial.sharing_seconds = lambda *_, **__: tuple(map(float, os.environ["SHARED_AND_SEPARATE"].split()))
sys.exit(main(sys.argv[1:]))
"""
"""`asympo` on a machine where sharing prefixes takes so long, and doing without so long."""
SHARED, SEPARATE = {"SHARED_AND_SEPARATE": "1 2"}, {"SHARED_AND_SEPARATE": "2 1"}


@pytest.mark.timeout(400)
def test_machine_that_would_choose_otherwise_by_now_trains_as_it_was_decided(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--total-steps", str(STEPS), "--save-every", str(STEPS), "--retain", "--share-prefixes", "auto")

    def learner(run: str, environment: dict[str, str]) -> LearnerProcess:
        return LearnerProcess(
            url=broker_url,
            run=run,
            root=tmp_path,
            model=tiny_model,
            flags=flags,
            launcher=("-c", TRIAL, "learner"),
            environment=environment,
        )

    plain, other, run = (f"{run_name}-{name}" for name in ("plain", "other", "disturbed"))
    for undisturbed, environment in ((plain, SHARED), (other, SEPARATE)):
        with Producer(url=broker_url, run=undisturbed):
            started = learner(undisturbed, environment).start()
            assert started.wait() == 0, started.log
    assert state_bytes(tmp_path, plain) != state_bytes(tmp_path, other)

    with Producer(url=broker_url, run=run) as producer:
        producer.hold_at_step = 2
        before, after = learner(run, SHARED), learner(run, SEPARATE)
        before.start()
        before.until(lambda: before.reached(2))
        before.end(signal.SIGKILL)
        producer.hold_at_step = None
        assert not list((tmp_path / run / "train").glob("step-*"))
        assert after.start("--take-over").wait() == 0, after.log
    expected = state_bytes(tmp_path, plain)
    assert state_bytes(tmp_path, run) == expected

    monkeypatch.setattr(trial, "sharing_seconds", None)
    replayed = Replay(checkpoint_root=tmp_path, run=run, from_state=None, any_build=False).run()
    assert (replayed.weights_identical, replayed.steps) == (True, STEPS)

    # The broker's copy is enough for who follows.
    [sealed] = (tmp_path / run / "train").glob("decisions-*.json")
    sealed.unlink()
    monkeypatch.setenv("SHARED_AND_SEPARATE", "2 1")
    follower = follow(broker_url, tmp_path, run, tmp_path / "same", launcher=("-c", TRIAL))
    assert report_of(follower)["step"] == STEPS
    assert state_bytes(tmp_path / "same", run) == expected


@pytest.mark.timeout(400)
def test_rows_made_smaller_before_a_kill_are_as_small_after_it(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    flags = ("--total-steps", "9", "--save-every", "9")
    where = {"url": broker_url, "root": tmp_path, "model": tiny_model, "flags": flags}
    small, disturbed = f"{run_name}-small", f"{run_name}-disturbed"
    with Producer(url=broker_url, run=small):
        undisturbed = LearnerProcess(**where, run=small, launcher=("-c", SMALL_MEMORY)).start()  # type: ignore[arg-type]
        assert undisturbed.wait() == 0, undisturbed.log
    with Producer(url=broker_url, run=disturbed) as producer:
        producer.hold_at_step = 5
        before = LearnerProcess(**where, run=disturbed, launcher=("-c", SMALL_MEMORY)).start()  # type: ignore[arg-type]
        before.until(lambda: before.reached(5))
        before.end(signal.SIGKILL)
        producer.hold_at_step = None
        # This one has all the memory it needs.
        after = LearnerProcess(**where, run=disturbed).start("--take-over")  # type: ignore[arg-type]
        assert after.wait() == 0, after.log
    assert state_bytes(tmp_path, disturbed) == state_bytes(tmp_path, small)
    decisions = open_decisions(tmp_path / disturbed).newest()
    assert decisions is not None
    before_5, from_5 = (decisions.at(step)["row_limits"]["used"][0] for step in (4, 5))
    assert from_5 <= 24 < before_5 == 64


@pytest.mark.timeout(400)
def test_another_class_of_processor_is_refused_until_told_to_decide_anew(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path, run_log: RunLog
) -> None:
    here = torch.backends.cpu.get_cpu_capability()
    elsewhere = {"ATEN_CPU_CAPABILITY": "default" if here == "AVX2" else "avx2"}
    where = {"url": broker_url, "run": run_name, "root": tmp_path, "model": tiny_model}
    learner = LearnerProcess(**where, flags=("--total-steps", "6"))  # type: ignore[arg-type]
    moved = LearnerProcess(**where, flags=("--total-steps", "6"), environment=elsewhere)  # type: ignore[arg-type]
    with Producer(url=broker_url, run=run_name) as producer:
        producer.hold_at_step = 1
        learner.start()
        learner.until(lambda: learner.reached(1))
        assert learner.end(signal.SIGTERM) == 0, learner.log
        producer.hold_at_step = None
        saved = run_log.commits.last()
        assert saved is not None
        assert moved.start().wait() == 2
        assert f"{here}" in moved.log
        assert "continue on a machine of the same class, or give --decide-anew" in moved.log
        # Lost in the broker, and there again with the next learner.
        run_log.broker.command("DEL", key(run_name, "decisions"))
        assert moved.start("--decide-anew").wait() == 0, moved.log
    assert "no longer bit for bit what an undisturbed run gives" in moved.log
    assert run_log.decisions.read() is not None
    decisions = open_decisions(tmp_path / run_name).newest()
    assert decisions is not None
    assert [entry.from_step for entry in decisions.entries] == [1, saved.step + 1]
