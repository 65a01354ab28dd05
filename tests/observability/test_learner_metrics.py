"""What the learner's metrics make of the broker's own counts and of its host."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from asympo.common.rollout_log import Broker, LogStats, RunLog
from asympo.learner.log.host import HostWatch
from asympo.learner.metrics import LearnerMetrics
from prometheus_client import CollectorRegistry


def _stats(stats: LogStats, **changes: Any) -> LogStats:
    return dataclasses.replace(stats, **changes)


def test_counts_of_the_run_are_counted_from_the_start_of_the_process(broker_url: str, run_name: str) -> None:
    broker = Broker.connect(broker_url)
    empty = RunLog(broker, run_name).stats.read()
    broker.close()
    registry = CollectorRegistry()
    metrics = LearnerMetrics(registry)
    for expiries in (40, 42, 42, 0, 3):
        stats = _stats(empty, lease_expiries=expiries)
        metrics.watched(stats, fence=1, is_paused=False, is_finished=False)
    # 40 came before this process; the fall to 0 is a run that was deleted, not a negative count.
    assert registry.get_sample_value("asympo_learner_lease_expiries_total") == 5


def test_host_is_measured_though_the_run_has_no_folder_yet(broker_url: str, tmp_path: Path) -> None:
    broker, registry = Broker.connect(broker_url), CollectorRegistry()
    storage = tmp_path / "not" / "there"
    host = HostWatch(broker=broker, storage=storage, metrics=LearnerMetrics(registry))
    host.start()
    deadline = time.monotonic() + 10
    while not registry.get_sample_value("asympo_learner_broker_used_bytes"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    host.stop()
    total = registry.get_sample_value("asympo_learner_storage_total_bytes")
    assert total == shutil.disk_usage(tmp_path).total
    assert registry.get_sample_value("asympo_learner_broker_up") == 1
    broker.close()
