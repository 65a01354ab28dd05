"""A learner that asks its broker for nothing: one that is paused, waits for its storage, or has finished."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from asympo.common.clock import SystemClock
from asympo.common.errors import BrokerChanged, BrokerRefused, BrokerUnavailable
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import Broker, RunLog, RunState
from asympo.common.trained_ids import TrainedIds
from asympo.learner.log.session import LogSession
from asympo.learner.progress import Progress
from asympo.local.broker import LocalBroker

from tests.integration.rollout_log.conftest import config_of


class NoWait(StopSignal):
    def wait(self, timeout_seconds: float | None = None) -> bool:
        raise AssertionError("it waits for its broker")


@dataclass(frozen=True, kw_only=True)
class Learner:
    server: LocalBroker
    log: RunLog
    session: LogSession

    def lose_everything(self) -> None:
        self.server.kill()
        shutil.rmtree(self.server.directory / "appendonlydir")
        self.server.start()

    def beat(self) -> None:
        """As the heartbeat does."""
        has_changed = True
        try:
            self.log.fence.heartbeat(self.session.fence, trained_sequence=0)
            has_changed = False
        except BrokerChanged:
            pass
        except (BrokerUnavailable, BrokerRefused):
            return
        self.session.heard(has_changed=has_changed)

    def stay(self, times: int) -> None:
        for _ in range(times):
            self.beat()
            self.session.stay()


@pytest.fixture
def learner(own_broker: LocalBroker, run_name: str) -> Iterator[Learner]:
    broker = Broker.connect(own_broker.url, max_retries=0)
    log = RunLog(broker, run_name)
    log.state.create_or_join(config_of(run_name))
    session = LogSession(
        run_log=log,
        fence=log.fence.take("one"),
        stop=NoWait(),
        clock=SystemClock(),
        trained=TrainedIds(num_prompts=50),
        progress=Progress(),
    )
    session.reconcile()
    session.announce(step=0, digest="d", policy_fence=session.fence.number)
    session.set_state(RunState.RUNNING)
    yield Learner(server=own_broker, log=log, session=session)
    broker.close()


def test_paused_learner_does_not_wait_for_its_broker_and_brings_back_what_it_lost(
    learner: Learner, caplog: pytest.LogCaptureFixture
) -> None:
    learner.server.kill()
    learner.stay(2)
    learner.server.start("--requirepass", "rotated")
    learner.stay(2)
    assert not caplog.records, "nothing was asked of a broker that answers no heartbeat"
    learner.lose_everything()
    learner.beat()
    learner.server.kill()
    learner.session.stay()
    assert "not brought back yet" in caplog.records[-1].getMessage()
    learner.server.start()
    learner.stay(2)
    assert learner.log.state.get() is RunState.RUNNING
    assert learner.session.latest_policy() is not None


def test_finished_run_that_its_broker_has_lost_is_brought_back_as_finished(learner: Learner) -> None:
    learner.session.set_state(RunState.FINISHED, reason="trained 7 steps")
    learner.lose_everything()
    learner.stay(2)
    stats = learner.log.stats.read()
    assert (stats.state, stats.state_reason) == (RunState.FINISHED, "trained 7 steps")
    assert learner.session.latest_policy() is not None
