"""What the learner's metrics make of a step, of the broker's own counts and of the host."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from asympo.common.records import FinishReason, Prompt, Response, RolloutGroup
from asympo.common.rollout_log import Broker, LogStats, RunLog
from asympo.learner.log.host import HostWatch
from asympo.learner.log.segment import LogSegment, ReadGroup
from asympo.learner.metrics import ROW_GAUGES, LearnerMetrics
from asympo.learner.record.step_record import step_row
from asympo.learner.step.step import StepResult
from prometheus_client import CollectorRegistry

RESULT = StepResult(
    loss=0.25,
    grad_norm=3.0,
    is_applied=True,
    learning_rate=1e-4,
    nll_positive=0.5,
    nll_negative=2.0,
    entropy=1.5,
    num_trained_tokens=5,
    num_computed_tokens=9,
    flops=3_000_000,
    peak_flops=6e6,
    row_tokens=1024,
    is_slow_path=False,
    seconds=2.0,
    optimizer_seconds=0.5,
    probes=(),
)
# Every field is a number, which the checker cannot tell from their names.
ZEROS: dict[str, Any] = {field.name: 0 for field in dataclasses.fields(LogStats)}
STATS = LogStats(**ZEROS | {"last_sequence": 7})


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
    while not registry.get_sample_value("asympo_learner_storage_total_bytes"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    host.stop()
    total = registry.get_sample_value("asympo_learner_storage_total_bytes")
    assert total == shutil.disk_usage(tmp_path).total
    assert registry.get_sample_value("asympo_learner_broker_up") == 1
    assert registry.get_sample_value("asympo_learner_broker_used_bytes")
    assert registry.get_sample_value("asympo_learner_broker_durable") is not None
    broker.close()


def test_step_with_two_responses_is_exported_as_its_row_says() -> None:
    responses = (
        Response(token_ids=(5, 6, 7), reward=1.0, finish_reason=FinishReason.STOP),
        Response(token_ids=(8,), reward=0.0, finish_reason=FinishReason.LENGTH),
    )
    group = ReadGroup(
        record=RolloutGroup(group_id="0-4", prompt=Prompt(token_ids=(1, 2)), responses=responses),
        sequence=4,
        producer="test",
        appended_at_seconds=0.0,
        prompt_ids=(1, 2),
        response_ids=((5, 6, 7), (8,)),
        advantages=(0.5, -0.5),
    )
    row = step_row(
        step=3,
        fence=1,
        segment=LogSegment(first_sequence=4, last_sequence=4, groups=(group,), entries=(), reasons={}),
        result=RESULT,
        staleness=(2,),
        generation_staleness_mean=1.0,
        stats=STATS,
        seconds={"wall": 9.0, "wait": 1.0, "busy": 3.0, "publish": 0.0, "save": 0.0},
        publish_bytes=0,
        policy_step=2,
    )
    assert (row["reward_mean"], row["truncated_ratio"], row["response_tokens_mean"]) == (0.5, 0.5, 2.0)
    assert (row["backlog"], row["wait_ratio"], row["nll_ratio"]) == (3, 0.25, 4.0)
    assert (row["flops_per_second"], row["mfu"]) == (1_500_000, 0.25)

    registry = CollectorRegistry()
    LearnerMetrics(registry).step_done(row, computed_tokens=9, is_applied=True)
    exported = {
        key: registry.get_sample_value(f"asympo_learner_{name}") for key, (name, _) in ROW_GAUGES.items()
    }
    assert exported == {key: row[key] for key in ROW_GAUGES}
