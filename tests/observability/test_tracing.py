"""Spans reach a collector, join without a message, and cost nothing when the collector is away."""

import logging
import sys
import threading
from collections.abc import Iterator

import pytest
from asympo.common import tracing
from asympo.common.errors import BadSetting
from asympo.common.tracing import Tracing, TracingOptions, open_tracing, trace_ids
from asympo.local.ports import free_port

from tests.observability.collector import Collector, collector


@pytest.fixture
def receiver() -> Iterator[Collector]:
    with collector() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def no_tracing_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def opened(endpoint: str | None, lost: list[int], *, service: str = "learner", **options: float) -> Tracing:
    return open_tracing(
        TracingOptions(endpoint=endpoint, **options),
        run="tiny",
        service=service,
        instance="one",
        on_lost=lost.append,
    )


def test_spans_of_two_processes_hang_below_one_root(receiver: Collector) -> None:
    lost: list[int] = []
    for service, name, is_root in (("learner", "train", False), ("generator", "group", True)):
        tracing_of_one = opened(receiver.endpoint, lost, service=service)
        tracing_of_one.record(
            "0-7", name, begun_ns=1_000, ended_ns=3_000, is_root=is_root, attributes={"asympo.step": 4}
        )
        tracing_of_one.close()
    train, group = receiver.spans
    trace_id, root_id = trace_ids("tiny", "0-7")
    assert train.trace_id == group.trace_id == trace_id
    assert (group.span_id, group.parent_id, train.parent_id) == (root_id, 0, root_id)
    assert (train.service, group.service) == ("asympo-learner", "asympo-generator")
    assert train.attributes == {"asympo.run": "tiny", "asympo.group_id": "0-7", "asympo.step": 4}
    assert (train.begun_ns, train.ended_ns) == (1_000, 3_000)
    assert lost == []


def test_span_around_a_block_notes_what_was_raised_and_passes_it_on(receiver: Collector) -> None:
    spans = opened(receiver.endpoint, [])

    def score() -> None:
        with spans.span("0-1", "reward") as attributes:
            attributes["asympo.responses"] = 3
            raise ValueError("no such word")

    with pytest.raises(ValueError, match="no such word"):
        score()
    spans.close()
    (span,) = receiver.spans
    assert span.is_error
    assert span.attributes["asympo.responses"] == 3
    assert span.ended_ns >= span.begun_ns > 0


def test_both_sides_choose_the_same_groups_when_only_a_share_is_traced(receiver: Collector) -> None:
    names = [f"0-{index}" for index in range(200)]
    for service, is_root in (("generator", True), ("learner", False)):
        spans = opened(receiver.endpoint, [], service=service, share=0.5)
        for name in names:
            spans.record(name, service, begun_ns=1, ended_ns=2, is_root=is_root)
        spans.close()
    chosen = [
        {span.trace_id for span in receiver.spans if span.name == service}
        for service in ("generator", "learner")
    ]
    assert chosen[0] == chosen[1]
    assert 60 < len(chosen[0]) < 140


def test_collector_that_refuses_or_is_away_is_one_warning_and_a_count(
    receiver: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.5)
    receiver.status = 403
    for endpoint in (receiver.endpoint, f"http://127.0.0.1:{free_port()}"):
        caplog.clear()
        lost: list[int] = []
        spans = opened(endpoint, lost)
        with caplog.at_level(logging.INFO):
            for index in range(1_200):
                spans.record(f"0-{index}", "train", begun_ns=1, ended_ns=2)
            spans.close()
        assert sum(lost) == 1_200
        ours = [each.getMessage() for each in caplog.records if each.name == tracing.__name__]
        (warning,) = [text for text in ours if text.startswith("Spans are lost")]
        assert endpoint in warning
    assert receiver.spans == []


def test_hanging_collector_holds_up_neither_spans_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "CLOSE_SECONDS", 0.2)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "600")
    gate = threading.Event()
    lost: list[int] = []
    with collector() as receiver:
        receiver.receive = lambda body: gate.wait(60)  # type: ignore[method-assign, assignment]
        spans = opened(receiver.endpoint, lost)
        for index in range(1_000):
            spans.record(f"0-{index}", "train", begun_ns=1, ended_ns=2)
        # Those beyond the queue are refused at once; the others while the process ends.
        num_refused = sum(lost)
        spans.close()
        assert num_refused >= 400
        assert sum(lost) == 1_000
        gate.set()


def test_tracing_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch, receiver: Collector) -> None:
    assert not opened(None, []).is_on
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    spans = opened(None, [])
    assert spans.is_on
    spans.record("0-1", "train", begun_ns=1, ended_ns=2)
    spans.close()
    assert [span.name for span in receiver.spans] == ["train"]
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not opened(receiver.endpoint, []).is_on


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(BadSetting, match=r"install asympo\[otel\]"):
        opened("http://127.0.0.1:4318", [])
