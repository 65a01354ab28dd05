"""Logging, metrics endpoint and JSON rows."""

import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asympo.common.jsonl import JsonlWriter, read_jsonl, read_steps
from asympo.common.telemetry import MetricsEndpoint, new_registry, set_up_logging
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import Counter

log = logging.getLogger("test-telemetry")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, hooks = root.handlers[:], root.level, (sys.excepthook, threading.excepthook)
    yield
    root.handlers[:], (sys.excepthook, threading.excepthook) = handlers, hooks
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_log_is_one_json_object_a_line_when_not_a_terminal() -> None:
    stream = io.StringIO()
    set_up_logging(service="learner", stream=stream)
    log.info("Published\npolicy %d", 7, extra={"step": 7, "level": "mine"})
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        log.exception("Failed")
    first, second = lines(stream)
    assert first["message"] == "Published\npolicy 7"
    assert (first["step"], first["service"], first["level"], first["level_"]) == (
        7,
        "learner",
        "INFO",
        "mine",
    )
    assert first["time"].endswith("Z")
    assert "RuntimeError: boom" in second["exception"]


def test_log_is_readable_text_on_a_terminal_and_escapes_control_characters() -> None:
    stream = Terminal()
    set_up_logging(service="learner", stream=stream)
    log.info("Response was %s", "\x1b[2J\nfake line", extra={"step": 3})
    assert stream.getvalue().count("\n") == 1
    assert r"learner: Response was \x1b[2J\nfake line step=3" in stream.getvalue()


def test_log_format_setting_wins_over_the_kind_of_stream() -> None:
    stream = Terminal()
    set_up_logging(service="learner", log_format="json", stream=stream)
    log.info("hello")
    assert lines(stream)[0]["message"] == "hello"


def test_log_holds_uncaught_exceptions_of_threads_and_replaces_earlier_handlers() -> None:
    first, second = io.StringIO(), io.StringIO()
    set_up_logging(service="learner", stream=first)
    set_up_logging(service="learner", stream=second)
    thread = threading.Thread(target=lambda: [][1])
    thread.start()
    thread.join()
    assert first.getvalue() == ""
    assert "IndexError" in lines(second)[0]["exception"]


def test_metrics_endpoint_serves_the_registry_at_its_exact_path() -> None:
    registry = new_registry(service="learner", version="9.9")
    Counter("asympo_learner_steps", "Optimizer steps.", registry=registry).inc()
    app = FastAPI()
    app.add_route("/metrics", MetricsEndpoint(registry))  # type: ignore[arg-type]
    response = TestClient(app).get("/metrics", follow_redirects=False)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert "asympo_learner_steps_total 1.0" in response.text
    assert 'asympo_build_info{service="learner",version="9.9"} 1.0' in response.text


def test_jsonl_round_trips_rows_and_writes_nan_as_null(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    writer = JsonlWriter(path)
    writer.append({"step": 1, "loss": float("nan"), "text": "a\nb\u2028\ud800"})
    writer.append({"step": 2})
    writer.close()
    writer.close()
    assert list(read_jsonl(path)) == [{"step": 1, "loss": None, "text": "a\nb\u2028\ud800"}, {"step": 2}]
    assert list(read_jsonl(tmp_path / "absent.jsonl")) == []


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b"x" * 200_000])
def test_jsonl_cuts_a_torn_last_line_when_reopened(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step":1}\n' + torn)
    assert list(read_jsonl(path)) == [{"step": 1}]
    writer = JsonlWriter(path, fsync=False)
    writer.append({"step": 2})
    writer.close()
    assert [row["step"] for row in read_jsonl(path)] == [1, 2]


def test_jsonl_leaves_the_file_as_it_was_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    path = tmp_path / "rows.jsonl"
    writer = JsonlWriter(path)
    writer.append({"step": 1})
    real_write, calls = os.write, []

    def write_half_then_fail(file: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real_write(file, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write_half_then_fail)
        with pytest.raises(OSError, match="No space left"):
            writer.append({"step": 2})
    writer.append({"step": 3})
    assert len(calls) == 2
    assert [row["step"] for row in read_jsonl(path)] == [1, 3]


def test_read_steps_starts_over_at_a_resumed_step_and_skips_lines_without_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step":1,"v":1}\n{"step":2,"v":1}\n{"step":3,"v":1}\nnot json\n{"v":1}\n{"step":2,"v":2}\n'
    )
    assert read_steps(path) == [{"step": 1, "v": 1}, {"step": 2, "v": 2}]


def test_read_steps_leaves_out_what_a_learner_adds_after_another_took_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = [(1, None), (2, 1), (2, 2), (3, 2), (2, 1), (4, 2)]
    rows = [{"step": step, **({} if fence is None else {"fence": fence})} for step, fence in steps]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(row["step"], row.get("fence")) for row in read_steps(path)] == [
        (1, None),
        (2, 2),
        (3, 2),
        (4, 2),
    ]
