"""The watch on storage and broker ends before the broker is closed."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.errors import AsympoError, BrokerRefused, BrokerUnavailable
from asympo.learner.log.host import HostWatch
from asympo.learner.metrics import LearnerMetrics
from prometheus_client import CollectorRegistry

INFO = SimpleNamespace(used_memory_bytes=1, maxmemory_bytes=2, is_durable=True)


def watch(info: Any, registry: CollectorRegistry, storage: Path) -> HostWatch:
    broker: Any = SimpleNamespace(info=info)
    return HostWatch(broker=broker, storage=storage, metrics=LearnerMetrics(registry))


def test_stop_waits_for_the_broker_that_is_being_asked(tmp_path: Path) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()

    def info() -> Any:
        is_asked.set()
        assert may_answer.wait(10)
        return INFO

    host = watch(info, CollectorRegistry(), tmp_path)
    host.start()
    assert is_asked.wait(10)
    stopping = threading.Thread(target=host.stop)
    stopping.start()
    stopping.join(0.2)
    assert stopping.is_alive()
    may_answer.set()
    stopping.join(10)
    assert not stopping.is_alive()


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), BrokerRefused("another password")])
def test_broker_that_does_not_answer_is_counted_as_down(tmp_path: Path, error: AsympoError) -> None:
    registry, is_asked = CollectorRegistry(), threading.Event()

    def info() -> Any:
        is_asked.set()
        raise error

    host = watch(info, registry, tmp_path)
    host.start()
    assert is_asked.wait(10)
    host.stop()
    assert registry.get_sample_value("asympo_learner_broker_up") == 0


def test_broker_is_not_asked_after_the_stop(tmp_path: Path) -> None:
    asked: list[int] = []
    host = watch(lambda: asked.append(1), CollectorRegistry(), tmp_path)
    host.stop()
    host._look()
    assert asked == []


def test_durability_is_exported_only_while_the_broker_says_it(tmp_path: Path) -> None:
    registry, said = CollectorRegistry(), SimpleNamespace(**vars(INFO))
    host = watch(lambda: said, registry, tmp_path)
    for is_durable, exported in ((None, None), (True, 1), (False, 0), (None, None)):
        said.is_durable = is_durable
        host._look()
        assert registry.get_sample_value("asympo_learner_broker_up") == 1
        assert registry.get_sample_value("asympo_learner_broker_durable") == exported
