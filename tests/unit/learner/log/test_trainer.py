"""What becomes of a segment between the log and the step: trained, passed over, or read again."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.clock import SystemClock
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import LogEntry
from asympo.common.trained_ids import TrainedIds
from asympo.learner.context import LearnerContext
from asympo.learner.control import LearnerControl
from asympo.learner.gpu_turn import GpuTurn
from asympo.learner.ledger import Ledger
from asympo.learner.log.segment import LogSegment, SegmentReader
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.settings import LearnerSettings
from asympo.learner.trainer import Trainer
from asympo.local.gpu_lock import GpuLock
from prometheus_client import CollectorRegistry

from tests.unit.learner.test_segment import NONE, SIGNAL, ListLog, group_reader, make_entry


class SmallRun(ListLog):
    """A log, the training thread's hold on it, and a trainer of it that computes nothing."""

    def __init__(self, entries: list[LogEntry], **settings: Any) -> None:
        super().__init__(entries)
        self.committed = self.order = None
        self.trained = TrainedIds(num_prompts=1000)
        self.registry = CollectorRegistry()
        self.segments, self.waits = list[LogSegment](), list[float]()
        self.num_saves = self.num_stays = 0
        # Of the broker, once a publish settles.
        self.after_reconcile: list[LogEntry] | None = None
        self.stop, clock = StopSignal(), SystemClock()
        asked = LearnerSettings(run="r", **settings)
        self.control = LearnerControl(settings=asked, stop=self.stop, clock=clock)
        self.progress = self.control.progress
        nothing: Any = SimpleNamespace()
        context = LearnerContext(
            settings=asked,
            control=self.control,
            metrics=LearnerMetrics(self.registry),
            tracing=nothing,
            stop=self.stop,
            clock=clock,
            ranks=None,
            gpu=GpuTurn(asked.gpu_lock, clock=clock),
        )
        parts: dict[str, Any] = {
            "session": self,
            "reader": SegmentReader(
                log=self,
                group_reader=group_reader(SimpleNamespace(eos_token_id=0)),
                groups_per_step=1,
                max_groups_per_step=2,
            ),
            "stepper": SimpleNamespace(row_limits=(1, 1), step=self._step),
            "publishing": SimpleNamespace(
                settle=self._settle,
                begin=lambda **_: None,
                hold=lambda ids, freed: None,
                staleness_of=lambda _: 0,
                take_totals=lambda: (0.0, 0),
                published_step=0,
                retry_at=None,
                held=frozenset(),
            ),
            "recorder": SimpleNamespace(
                waited=self.waits.append,
                saved=lambda _: None,
                stepped=lambda *_, **__: None,
                wait_seconds=0.0,
                wall_seconds=0.0,
            ),
        }
        told: dict[str, Any] = {
            "archive": SimpleNamespace(consumed=lambda *_, **__: None),
            "trained_log": SimpleNamespace(add=lambda *_, **__: None, flush=lambda: None),
            "traces": SimpleNamespace(trained=lambda *_, **__: None),
            **{name: parts[name] for name in ("session", "publishing")},
        }
        ledger = Ledger(context=context, **told)
        saver: Any = SimpleNamespace(save=self._save, prune=lambda committed: None)
        self.trainer = Trainer(context=context, ledger=ledger, saver=saver, **parts)

    def stats(self) -> Any:
        return SimpleNamespace(is_exhausted=True)

    def is_at_end(self, after_sequence: int) -> bool:
        self._settle(wait=False)
        return True

    def commit(self, **_: Any) -> Any:
        self.num_saves += 1
        return SimpleNamespace()

    def exported(self, name: str) -> float | None:
        return self.registry.get_sample_value(f"asympo_learner_{name}")

    def _settle(self, *, wait: bool) -> None:
        if self.after_reconcile is not None:
            self.entries, self.after_reconcile = self.after_reconcile, None
            self.num_reconciles += 1

    def stay(self) -> None:
        self.num_stays += 1

    def _step(self, segment: LogSegment, *, step: int) -> Any:
        self.segments.append(segment)
        return SimpleNamespace(probes=(), is_applied=True)

    def _save(self, **_: Any) -> str:
        return "step-1"


def test_segment_that_was_read_before_a_reconcile_is_read_again() -> None:
    run = SmallRun([make_entry(1, SIGNAL), make_entry(2, SIGNAL)])
    run.trainer._turn()
    run.after_reconcile = [make_entry(2, (0.0, 1.0)), make_entry(3, SIGNAL)]
    for _ in range(4):
        run.trainer._turn()
    assert [segment.last_sequence for segment in run.segments] == [1, 2, 3]
    assert [segment.entries[0] for segment in run.segments[1:]] == run.entries


def test_segment_whose_entries_were_all_set_aside_says_why_and_is_not_called_empty(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad = [make_entry(sequence, SIGNAL, payload=b"\xff\x00") for sequence in (3, 4)]
    run = SmallRun([make_entry(1, NONE), make_entry(2, NONE), *bad])
    with caplog.at_level(logging.INFO, "asympo.learner.trainer"):
        for _ in range(2):
            run.trainer._turn()
    first, second = [each.getMessage() for each in caplog.records if each.name == "asympo.learner.trainer"]
    assert first.startswith("Groups 1 to 2 have no signal: all rewards of each are equal (1 such segments")
    assert second == f"Entries 3 to 4 were all set aside, the first because: {run.dead[0][1]}"
    assert (run.progress.sequence, run.exported("empty_segments_in_a_row")) == (4, 1)


@pytest.mark.parametrize("rewards", [SIGNAL, NONE])
def test_commit_comes_before_save_every_once_the_groups_since_the_last_one_are_large(
    rewards: tuple[float, ...],
) -> None:
    entries = [make_entry(sequence, rewards) for sequence in range(1, 13)]
    # A step is one group with signal, or two without.
    size = len(entries[0].payload) * (1 if rewards == SIGNAL else 2)
    run = SmallRun(entries, max_uncommitted_bytes=5 * size // 2)
    saves = []
    for _ in range(6):
        run.trainer._turn()
        saves.append(run.num_saves)
    assert saves == [0, 0, 1, 1, 1, 2]


def test_segment_waits_for_the_gpu_and_the_loop_hears_a_pause_and_a_stop_meanwhile(tmp_path: Path) -> None:
    run = SmallRun([make_entry(1, SIGNAL), make_entry(2, SIGNAL)], gpu_lock=tmp_path / "gpu.lock")
    trainer: Any = run.trainer
    generator = GpuLock(tmp_path / "gpu.lock")
    assert generator.try_share()
    for _ in range(2):
        trainer._turn()
        assert generator.is_wanted()
    assert not run.segments
    assert run.num_stays == 2, "a run that its broker loses meanwhile is brought back"
    assert sum(run.waits) >= 1.0
    generator.unshare()
    trainer._turn()
    assert [segment.last_sequence for segment in run.segments] == [1]
    assert generator.try_share(), "given back after the step"

    trainer._turn()
    assert generator.is_wanted()
    run.control.pause()
    wanted_in_pause = []

    def stay() -> None:
        wanted_in_pause.append(generator.is_wanted())
        run.stop.set("test")

    trainer._session = SimpleNamespace(stay=stay)
    trainer._close_up = lambda: None
    assert trainer._run(lambda: None) is False
    assert wanted_in_pause == [False], "a learner that computes nothing keeps nobody from the GPU"
    assert len(run.segments) == 1
