"""Trackers: what they write, and that none of them can stop training."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.clock import SystemClock
from asympo.common.errors import BadSetting
from asympo.common.jsonl import read_jsonl, read_steps
from asympo.learner.progress import Progress
from asympo.learner.record import recorder as recorder_module
from asympo.learner.record import trackers as trackers_module
from asympo.learner.record.recorder import StepRecorder
from asympo.learner.record.trackers import Trackers
from asympo.learner.settings import TrackerSettings

ROW: dict[str, Any] = {
    "reward_mean": 0.5,
    "groups": 8,
    "nll_ratio": None,
    "grad_norm": float("nan"),
    "note": "text",
}


class RecordingSink:
    """A tracker in memory; `fail` is called before each row."""

    def __init__(self, fail: Callable[[int], None] = lambda step: None) -> None:
        self.fail = fail
        self.rows: list[Any] = []
        self.calls: list[str] = []

    def open(self) -> None:
        self.calls.append("open")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.fail(step)
        self.rows.append((step, dict(numbers)))

    def close(self) -> None:
        self.calls.append("close")


def make(tmp_path: Path, **options: Any) -> Trackers:
    return Trackers(TrackerSettings(), directory=tmp_path, run="demo", **options)


def steps(tmp_path: Path) -> list[int]:
    return [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")]


def test_trackers_write_jsonl_always_and_finite_numbers_to_the_others(tmp_path: Path) -> None:
    sink = RecordingSink()
    trackers = make(tmp_path, sinks={"memory": sink})
    trackers.log(1, ROW)
    trackers.close()
    assert list(read_jsonl(tmp_path / "metrics.jsonl")) == [{"step": 1, **ROW, "grad_norm": None}]
    assert sink.rows == [(1, {"reward_mean": 0.5, "groups": 8.0})]
    assert sink.calls == ["open", "close"]
    assert not trackers.failures


def test_what_evaluations_find_after_the_last_step_completes_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, found = RecordingSink(), [{"eval/a/mean@1": 0.1}, {}, {"eval/b/mean@1": 0.2}]
    trackers = make(tmp_path, sinks={"memory": sink})
    row = {"step": 3, "fence": 1, "nll_positive": None, "nll_negative": None, "tokens_per_second": 1.0}
    monkeypatch.setattr(recorder_module, "step_row", lambda **_: row | ROW)
    evals = SimpleNamespace(take_numbers=lambda: found.pop(0))
    context: Any = SimpleNamespace(
        clock=SystemClock(),
        progress=Progress(step=3, fence=1),
        control=SimpleNamespace(evals=evals, samples=None, add_row=lambda row: None),
        metrics=SimpleNamespace(step_done=lambda row, **_: None),
    )
    recorder = StepRecorder(context=context, trackers=trackers, decode=str, wall_seconds=0.0)
    recorder.record_late_results()
    given: Any = {"busy_seconds": 1.0, "published": (0.0, 0), "policy_step": 3, "staleness": []}
    stats: Any = SimpleNamespace(generation_staleness_policies_total=0, appended=0)
    segment: Any = None
    result: Any = SimpleNamespace(num_computed_tokens=1, is_applied=True)
    recorder.stepped(segment, result, stats=stats, **given)
    for _ in range(2):
        recorder.record_late_results()
    trackers.close()
    (completed,) = read_steps(tmp_path / "metrics.jsonl")
    assert completed == {**row, **ROW, "grad_norm": None, "eval/a/mean@1": 0.1, "eval/b/mean@1": 0.2}
    assert sink.rows[1:] == [(3, {"eval/b/mean@1": 0.2})]


def test_trackers_go_on_and_count_when_one_of_them_raises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def raise_at_two(step: int) -> None:
        if step == 2:
            raise RuntimeError("server said no")

    bad, good = RecordingSink(raise_at_two), RecordingSink()
    failed: list[str] = []
    trackers = make(tmp_path, sinks={"bad": bad, "good": good}, on_failure=failed.append)
    logger = logging.getLogger("asympo.learner.record.trackers")
    # On the logger itself: libraries that the trackers import rearrange the root's handlers and levels.
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING, logger=logger.name):
        for step in (1, 2, 3):
            trackers.log(step, ROW)
        trackers.close()
    logger.removeHandler(caplog.handler)
    assert [step for step, _ in bad.rows] == [1, 3]
    assert [step for step, _ in good.rows] == steps(tmp_path) == [1, 2, 3]
    assert failed == ["bad"]
    assert trackers.failures == {"bad": 1}
    assert "server said no" in caplog.text
    assert "RuntimeError" in caplog.text


def test_trackers_do_not_wait_for_one_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers_module, "_MAX_QUEUED_ROWS", 5)
    release = threading.Event()

    def wait_for_release(step: int) -> None:
        release.wait(30)

    trackers = make(tmp_path, sinks={"slow": RecordingSink(wait_for_release)})
    for step in range(1, 21):
        trackers.log(step, ROW)
    assert steps(tmp_path) == list(range(1, 21))
    assert trackers.failures["slow"] >= 14
    trackers.close(timeout_seconds=0.1)
    release.set()


def test_tracker_that_cannot_be_opened_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers_module, "_REOPEN_SECONDS", 0.0)

    class DownAtFirst(RecordingSink):
        def open(self) -> None:
            super().open()
            if self.calls == ["open"]:
                raise ConnectionError("no route to host")

    sink = DownAtFirst()
    trackers = make(tmp_path, sinks={"remote": sink})
    trackers.log(1, ROW)
    trackers.log(2, ROW)
    trackers.close()
    assert [step for step, _ in sink.rows] == [2]
    assert trackers.failures == {"remote": 1}


def test_trackers_go_on_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = RecordingSink()
    trackers = make(tmp_path, sinks={"memory": sink})

    def full(row: Mapping[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(trackers._jsonl, "append", full)
        trackers.log(1, ROW)
    trackers.log(2, ROW)
    trackers.close()
    assert [step for step, _ in sink.rows] == [1, 2]
    assert steps(tmp_path) == [2]
    assert trackers.failures == {"jsonl": 1}


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow-skinny")]
)
def test_missing_tracker_package_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, package: str
) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BadSetting, match=f"the tracker {name} needs the package {package}, which cannot be"):
        Trackers(TrackerSettings(enabled=(name,)), directory=tmp_path, run="demo")


def test_tensorboard_has_the_numbers_and_forgets_steps_that_are_trained_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run_of_steps in ((1, 2, 3), (2, 3)):
        trackers = Trackers(TrackerSettings(enabled=("tensorboard",)), directory=tmp_path, run="demo")
        for step in run_of_steps:
            trackers.log(step, {"reward_mean": step / 10, "loss": None})
        trackers.close()
    assert not trackers.failures
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["reward_mean"]
    values = [(event.step, round(event.value, 5)) for event in events.Scalars("reward_mean")]
    assert values == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_wandb_offline_leaves_a_folder_to_sync(tmp_path: Path) -> None:
    trackers = Trackers(
        TrackerSettings(enabled=("wandb",)), directory=tmp_path, run="demo", run_settings={"group_size": 8}
    )
    trackers.log(1, ROW)
    trackers.close(timeout_seconds=60)
    assert not trackers.failures
    (record,) = (tmp_path / "wandb").glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60  # its service process writes the file after `finish` has returned
    while b"reward_mean" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"reward_mean" in record.read_bytes()
    assert b"group_size" in record.read_bytes()


def test_wandb_online_without_a_key_is_a_bad_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(BadSetting, match="there is no W&B API key; set WANDB_API_KEY"):
        Trackers(TrackerSettings(enabled=("wandb",), wandb_mode="online"), directory=tmp_path, run="demo")


ODD_NAMES = {
    "eval/gsm8k/mean@4": "eval/gsm8k/mean_4",
    "reward/len(x) > 3/mean": "reward/len_x_ _ 3/mean",
    "reward//../mean": "reward/_/_/mean",
    "..hidden/länge: a-b.c": "_hidden/länge: a-b.c",
    "x" * 249 + "/mean": "x" * 249,
}
"""Of numbers, and as MLflow takes them."""


def test_mlflow_keeps_numbers_by_step_in_a_local_folder(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    settings = TrackerSettings(enabled=("mlflow",), project="tests")
    trackers = Trackers(settings, directory=tmp_path, run="demo", run_settings={"group_size": 8})
    for step in (1, 2):
        trackers.log(step, {"reward_mean": step / 10, **dict.fromkeys(ODD_NAMES, 0.5)})
    trackers.close(timeout_seconds=60)
    assert not trackers.failures
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics.keys() == {"reward_mean", *ODD_NAMES.values()}
    assert (run.info.run_name, run.info.status, run.data.params) == ("demo", "FINISHED", {"group_size": "8"})
    history = client.get_metric_history(run.info.run_id, "reward_mean")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.1), (2, 0.2)]
