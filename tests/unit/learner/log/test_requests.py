"""Whoever asks a learner for something is answered, also when it ends or is resumed meanwhile."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.clock import SystemClock
from asympo.common.errors import Fenced
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import CommitRecord
from asympo.learner.context import LearnerContext
from asympo.learner.control import LearnerControl, LearnerState, SaveRefused
from asympo.learner.gpu_turn import GpuTurn
from asympo.learner.settings import LearnerSettings
from asympo.learner.trainer import Trainer

COMMITTED = CommitRecord(sequence=9, state_name="step-3", step=3, fence=1)


class Ending:
    """A learner that has committed step 3, with a request to save that it has not seen yet."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        settings, clock = LearnerSettings(run="r"), SystemClock()
        self.stop = StopSignal()
        self.control = LearnerControl(settings=settings, stop=self.stop, clock=clock)
        self.control.progress.step = 3
        self.retained: list[str] = []
        self.done: list[str] = []
        nobody: Any = SimpleNamespace()
        context = LearnerContext(
            settings=settings,
            control=self.control,
            metrics=nobody,
            tracing=nobody,
            stop=self.stop,
            clock=clock,
            ranks=None,
            gpu=GpuTurn(None, clock=clock),
        )
        parts: dict[str, Any] = {
            "session": SimpleNamespace(committed=COMMITTED),
            "reader": nobody,
            "stepper": nobody,
            "publishing": SimpleNamespace(
                settle=lambda wait: None, published_step=3, is_in_flight=False, close=lambda: None
            ),
            "saver": SimpleNamespace(retain=self.retained.append),
            "ledger": SimpleNamespace(segments_since_commit=0),
            "recorder": SimpleNamespace(record_late_results=lambda: self.done.append("late results")),
        }
        self.trainer = Trainer(context=context, **parts)
        self.control.enter(LearnerState.WAITING)
        self.control.pause()
        self.answer: Future[CommitRecord] = pool.submit(self.control.save, retain=True, timeout_seconds=20)
        self.control.wait_while_paused(20)

    def refuses(self) -> bool:
        with pytest.raises(SaveRefused):
            self.control.save(retain=False, timeout_seconds=0)
        return True


@pytest.fixture
def ending() -> Iterator[Ending]:
    with ThreadPoolExecutor(1) as pool:
        yield Ending(pool)


def test_save_is_answered_by_the_last_commit_when_the_learner_is_told_to_stop(ending: Ending) -> None:
    ending.stop.set("test")
    assert not ending.trainer.run()
    assert ending.answer.result(20) == COMMITTED
    assert ending.retained == [COMMITTED.state_name]
    assert ending.done == ["late results"]
    assert ending.refuses()


def test_save_is_refused_when_the_learner_fails(ending: Ending) -> None:
    with pytest.raises(Fenced):
        ending.trainer.run(lost=lambda: Fenced("another learner owns the run"))
    with pytest.raises(SaveRefused, match="the learner ended"):
        ending.answer.result(20)
    assert ending.refuses()


def test_save_that_fails_is_answered_too(ending: Ending, monkeypatch: pytest.MonkeyPatch) -> None:
    def fenced(name: str) -> None:
        raise Fenced("another learner owns the run")

    monkeypatch.setattr(ending.trainer._saver, "retain", fenced)
    ending.stop.set("test")
    with pytest.raises(Fenced):
        ending.trainer.run()
    with pytest.raises(SaveRefused):
        ending.answer.result(20)


def test_pause_that_ends_while_it_is_looked_at_is_either_there_or_not() -> None:
    found = [0, None]

    class ResumedMeanwhile(LearnerControl):
        _pause_after = property(lambda self: found.pop(0), lambda self, value: None)

    control = ResumedMeanwhile(settings=LearnerSettings(run="r"), stop=StopSignal(), clock=SystemClock())
    assert control.is_paused
