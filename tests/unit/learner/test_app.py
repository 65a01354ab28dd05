"""What a learner exports before it trains, and how it ends."""

import os
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.clock import SystemClock
from asympo.common.errors import Fenced
from asympo.common.jsonl import JsonlWriter
from asympo.common.lifecycle import StopSignal
from asympo.common.logs.watch import LogWatch
from asympo.common.rollout_log import Broker, RunState
from asympo.learner import app, build
from asympo.learner.settings import LearnerSettings
from asympo.learner.torchrun import Launch
from asympo.learner.trainer import Trainer
from asympo.local.ports import free_port


def process(root: Path, stop: StopSignal, *argv: str) -> app.LearnerProcess:
    settings = LearnerSettings.load(["--checkpoint-root", str(root), "--run", "r", *argv], environ={})
    return app.LearnerProcess(
        settings=settings,
        stop=stop,
        clock=SystemClock(),
        launch=Launch.from_environment({}),
        ranks=None,
        log_watch=LogWatch(),
    )


def test_error_while_a_publish_hangs_ends_the_learner_at_its_deadline_with_the_code_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fenced(*, wait: bool) -> None:
        raise Fenced("another learner owns the run")

    ended_with: Future[int] = Future()
    monkeypatch.setattr(os, "_exit", ended_with.set_result)
    learner = process(tmp_path, StopSignal(), "--drain-seconds", "0.01")
    hanging: dict[str, Any] = {"settle": fenced, "close": lambda: ended_with.result(20)}
    hanging |= {"start": lambda step: None, "is_in_flight": True}
    parts: dict[str, Any] = {
        "session": SimpleNamespace(stats=lambda: SimpleNamespace(state=RunState.RUNNING)),
        "publishing": SimpleNamespace(**hanging),
        **dict.fromkeys(("reader", "stepper", "saver", "ledger", "recorder")),
    }
    trainer = Trainer(context=learner._context, **parts)
    monkeypatch.setattr(build, "build_trainer", lambda **_: trainer)
    monkeypatch.setattr(learner, "_take_run", lambda *_: None)
    nothing: Any = SimpleNamespace(set_serving=lambda is_serving: None)
    with ExitStack() as closing:
        learner._limit_drain(closing)
        with pytest.raises(Fenced):
            learner._train(nothing, nothing, nothing, nothing, closing)
    assert ended_with.result(0) == Fenced.exit_code
    first, last = [record.getMessage() for record in caplog.records if record.levelname != "INFO"]
    assert first == "Training ends once its publish has ended: another learner owns the run"
    assert last.startswith("Not closed 0 s after training ended: Fenced('another learner owns the run'), ")


def test_learner_that_stays_up_goes_on_writing_down_what_evaluations_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopSignal()
    looks: list[str] = []

    def look() -> None:
        looks.append("look")
        if len(looks) == 2:
            stop.set("seen twice")

    monkeypatch.setattr(app, "_LATE_RESULTS_SECONDS", 0.0)
    trainer: Any = SimpleNamespace(look_after_the_end=look)
    process(tmp_path, stop, "--exit-when-run-ends", "false")._stay_when_finished(trainer)
    # Once more after the stop, for what came since.
    assert len(looks) == 3


def exported(learner: app.LearnerProcess, name: str) -> float | None:
    return learner._registry.get_sample_value(f"asympo_learner_{name}")


def test_learner_that_never_had_a_broker_exports_it_as_down_and_nothing_of_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = StopSignal()
    connect = Broker.connect

    def once(url: str) -> Broker:
        stop.set("tried once")
        return connect(url, max_retries=0)

    monkeypatch.setattr(Broker, "connect", once)
    learner = process(tmp_path, stop, "--redis-url", f"redis://127.0.0.1:{free_port()}/0")
    assert learner._connect() is None
    assert exported(learner, "broker_up") == 0
    assert exported(learner, "broker_durable") is None


@pytest.mark.parametrize("step", [0, 2])
def test_learner_exports_its_newest_committed_step_as_soon_as_it_knows_it(step: int, tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path / "r/metrics.jsonl")
    for number in (1, 2, 3):
        row: dict[str, Any] = {"step": number, "reward_mean": number / 10, "nll_ratio": None, "mfu": None}
        writer.append(row | {"nll_positive": 0.5, "reward/length/mean": 7.0})
    writer.close()
    learner = process(tmp_path, StopSignal())
    names = ("step", "reward", "nll_ratio", "mfu_ratio", "steps_total")
    assert [exported(learner, name) for name in names] == [None, None, None, None, 0]
    # Else the time of the adopted policy would be a change, and count as a publish.
    assert exported(learner, "last_publish_timestamp_seconds") is None
    learner._show_history(step)
    reward = 0.2 if step else None
    assert [exported(learner, name) for name in names] == [step, reward, None, None, 0]
    labels = {"sign": "positive"}
    nll = learner._registry.get_sample_value("asympo_learner_nll_nats", labels)
    assert nll == (0.5 if step else None)
