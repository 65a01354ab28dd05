"""Learner processes that end with their test."""

from collections.abc import Iterator

import pytest
from asympo.common.rollout_log import Broker, RunLog

from tests.integration.learner.process import STARTED


@pytest.fixture(autouse=True)
def no_learner_outlives_its_test() -> Iterator[None]:
    yield
    while STARTED:
        # Not SIGKILL at first: torchrun must end its ranks.
        STARTED.pop().stop(deadline_seconds=40)


@pytest.fixture
def run_log(broker_url: str, run_name: str) -> Iterator[RunLog]:
    broker = Broker.connect(broker_url)
    yield RunLog(broker, run_name)
    broker.close()
