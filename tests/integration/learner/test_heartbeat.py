"""A learner's fence is kept alive beside whatever else the learner does."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asympo.common.clock import SystemClock
from asympo.common.errors import BrokerRefused, CorruptCheckpoint, RunHasLearner
from asympo.common.lifecycle import StopSignal
from asympo.common.logs.watch import LogWatch
from asympo.common.rollout_log import Broker, Fence, RunConfig, RunLog
from asympo.learner import app
from asympo.learner.control import LearnerControl
from asympo.learner.log.heartbeat import Heartbeat
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.settings import LearnerSettings
from asympo.learner.state import saver
from asympo.learner.torchrun import Launch
from prometheus_client import CollectorRegistry

from tests.integration.rollout_log.conftest import config_of

SHORT_SECONDS = 0.6
"""Three turns of the thread."""


@pytest.fixture
def config(run_log: RunLog) -> RunConfig:
    return run_log.state.create_or_join(config_of(run_log.run))


@contextmanager
def beating(run_log: RunLog, on_lost: Callable[[Exception], None]) -> Iterator[Heartbeat]:
    clock = SystemClock()
    settings = LearnerSettings(run=run_log.run)
    heartbeat = Heartbeat(
        run_log=run_log,
        learner=LearnerControl(settings=settings, stop=StopSignal(), clock=clock),
        metrics=LearnerMetrics(CollectorRegistry()),
        clock=clock,
        on_lost=on_lost,
    )
    heartbeat.start()
    yield heartbeat
    heartbeat.release()


class Watched:
    """The heartbeats of a run, and how each went."""

    def __init__(self, run_log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
        self._beat = run_log.fence.heartbeat
        self._next: list[tuple[str, threading.Event]] = []
        monkeypatch.setattr(run_log.fence, "heartbeat", self._watch)

    def await_one(self, kind: str) -> None:
        """Returns after the next one that goes like this: `kept`, or the name of an error."""
        has_come = threading.Event()
        self._next.append((kind, has_come))
        assert has_come.wait(20), kind

    def _watch(self, fence: Fence, **more: Any) -> None:
        kind = "kept"
        try:
            self._beat(fence, **more)
        except Exception as error:
            kind = type(error).__name__
            raise
        finally:
            for wanted, has_come in self._next:
                if wanted == kind:
                    has_come.set()


def test_fence_is_kept_while_the_state_is_looked_for_and_given_up_when_there_is_none(
    run_log: RunLog, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--checkpoint-root", str(tmp_path), "--run", run_log.run, "--heartbeat-seconds", "1.5"]
    watched = Watched(run_log, monkeypatch)

    def damaged(*_: object, **__: object) -> None:
        watched.await_one("kept")
        with pytest.raises(RunHasLearner):
            run_log.fence.take("another")
        raise CorruptCheckpoint("all of it was read")

    monkeypatch.setattr(saver, "find_state", damaged)
    learner = app.LearnerProcess(
        settings=LearnerSettings.load(argv, environ={}),
        stop=StopSignal(),
        clock=SystemClock(),
        launch=Launch.from_environment({}),
        ranks=None,
        log_watch=LogWatch(),
    )
    with (
        beating(run_log, lambda error: None) as learner._heartbeat,
        pytest.raises(CorruptCheckpoint, match="all of it was read"),
    ):
        learner._take_run(run_log, config, tokenizer=None)
    assert run_log.fence.take("another").number == 2


def test_heartbeat_outlives_a_password_that_is_wrong_for_a_while(
    run_log: RunLog, config: RunConfig, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, admin = run_log.run, run_log.broker.command
    admin("ACL", "SETUSER", user, "on", ">right", "~*", "&*", "+@all")
    monkeypatch.setenv("REDIS_USERNAME", user)
    monkeypatch.setenv("REDIS_PASSWORD", "right")
    broker = Broker.connect(broker_url, max_retries=0)
    try:
        own_log = RunLog(broker, run_log.run)
        watched = Watched(own_log, monkeypatch)
        lost: list[Exception] = []
        with beating(own_log, lost.append) as heartbeat:
            fence = own_log.fence.take("learner", heartbeat_seconds=SHORT_SECONDS)
            heartbeat.beat_for(lambda: fence)
            watched.await_one("kept")
            admin("ACL", "SETUSER", user, "resetpass", ">other")
            admin("CLIENT", "KILL", "USER", user)
            watched.await_one(BrokerRefused.__name__)
            admin("ACL", "SETUSER", user, ">right")
            watched.await_one("kept")
        assert lost == []
    finally:
        broker.close()
        admin("ACL", "DELUSER", user)


def test_learner_is_told_of_an_error_that_ends_its_heartbeat(
    run_log: RunLog, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_lost, lost = threading.Event(), list[Exception]()

    def note(error: Exception) -> None:
        lost.append(error)
        is_lost.set()

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no number")

    monkeypatch.setattr(run_log.fence, "heartbeat", broken)
    with beating(run_log, note) as heartbeat:
        fence = run_log.fence.take("learner", heartbeat_seconds=SHORT_SECONDS)
        heartbeat.beat_for(lambda: fence)
        assert is_lost.wait(20)
    assert [str(error) for error in lost] == ["no number"]
