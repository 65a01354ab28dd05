"""What goes wrong while every process runs is said once with a count, in logs that stay small."""

import dataclasses
import json
import logging
import os
import signal
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.errors import BrokerUnavailable, NoProgress
from asympo.common.lifecycle import StopSignal
from asympo.common.logs.watch import LogWatch
from asympo.local.log_file import keep_small, last_sentence
from asympo.local.process import kill_group
from asympo.local.service import RestartPolicy, Service
from asympo.run.command import _notify_end
from asympo.run.notify import notify as notify_until
from asympo.run.processes.status import HttpStatus
from asympo.run.processes.trouble import ProgressWatch, Warnings

from tests.unit.run.test_supervision import look_after, services_of

notify = partial(notify_until, stop=StopSignal())


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def no_http_server() -> Iterator[int]:
    """The port of something that speaks another protocol."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)
            self.request.sendall(b"\0\0\x18\x04\0\0\0\0\0\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def written() -> Iterator[tuple[logging.Logger, LogWatch, list[str], Clock]]:
    clock, lines = Clock(), list[str]()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    log, watch, handler = logging.getLogger("asympo.test.trouble"), LogWatch(clock), Keep()
    handler.addFilter(watch)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield log, watch, lines, clock
    log.removeHandler(handler)


def test_a_warning_that_repeats_fills_no_log_and_is_counted(
    written: tuple[logging.Logger, LogWatch, list[str], Clock],
) -> None:
    log, watch, lines, clock = written
    for number in range(32_070):
        log.warning("A response to prompt %d could not be scored: %s", number, "ValueError('no')")
        clock.now += 60 / 32_070
    assert len(lines) < 40
    assert "more like this were left out)" in lines[-1]
    [warned] = watch.warnings()
    assert (warned["count"], warned["level"]) == (32_070, "warning")
    assert warned["text"] == "A response to prompt 32069 could not be scored: ValueError('no')"
    assert warned["last_at_seconds"] > warned["first_at_seconds"]


def test_malformed_log_call_of_a_library_raises_nothing_and_is_shown(
    written: tuple[logging.Logger, LogWatch, list[str], Clock],
) -> None:
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    log, _, lines, _ = written
    log.warning("%d prompts", "many")
    log.warning(Mute())
    assert lines == ["%d prompts", "a message that cannot be shown (RuntimeError: no words)"]


def test_clock_that_is_set_back_silences_nothing(
    written: tuple[logging.Logger, LogWatch, list[str], Clock],
) -> None:
    log, _, lines, clock = written
    log.warning("%s", "it is late")
    clock.now -= 86_400
    for _ in range(5):
        log.warning("%s", "it is late")
    assert lines == ["it is late"] * 6


def test_other_warnings_are_not_hidden_by_one_that_repeats(
    written: tuple[logging.Logger, LogWatch, list[str], Clock],
) -> None:
    log, watch, lines, _ = written
    for _ in range(1000):
        log.warning("%s", "the first")
        log.error(f"Cannot write {'x'}")
    log.warning("%s", "the second")
    assert lines[-1] == "the second"
    assert {each["text"]: each["count"] for each in watch.warnings()} == {
        "the first": 1000,
        "Cannot write x": 1000,
        "the second": 1,
    }


def test_healthy_lines_of_an_hour_stay_below_two_megabytes(
    written: tuple[logging.Logger, LogWatch, list[str], Clock],
) -> None:
    log, _, lines, clock = written
    for step in range(36_000):
        log.info("Step %d: reward 0.512, published as step-%08d, 8 groups of 64 responses each", step, step)
        clock.now += 0.1
    assert sum(len(line) + 40 for line in lines) < 2e6 / 3


def test_console_hears_of_an_error_at_once_of_a_warning_twice_and_then_at_every_tenfold() -> None:
    warnings = Warnings(lambda: 100.0)

    def told(count: int, *, level: str = "warning", life: int = 0) -> list[str]:
        text = f"Prompt {count} failed"
        return warnings.note("generator-0", life, [{"text": text, "level": level, "count": count}])

    assert told(1) == []
    assert told(2) == ["generator-0: Prompt 2 failed (2 times)"]
    assert told(19) == []
    assert told(25) == ["generator-0: Prompt 25 failed (25 times)"]
    told(240)
    assert told(10, life=1) == ["generator-0: Prompt 10 failed (250 times)"], "restarts go on counting"
    assert warnings.note("learner", 0, [{"text": "No space", "level": "error", "count": 1}])
    assert [line.split(":")[0] for line in warnings.lines] == ["learner", "generator-0"]


def test_run_that_only_fails_ends_with_its_cause_and_one_that_moves_does_not() -> None:
    clock = Clock()
    watch = ProgressWatch(failing_seconds=60, stall_seconds=100, give_up_seconds=300, clock=clock)
    told = []
    for turn in range(50):
        clock.now += 50
        told.append(watch.note(step=turn // 2, num_groups=turn, num_failures=9 * turn, cause=""))
    assert not any(told)
    clock.now += 61
    with pytest.raises(NoProgress, match="9 prompts failed: it raises"):
        watch.note(step=24, num_groups=49, num_failures=450, cause="it raises")


def test_silence_is_reported_once_and_ends_the_run() -> None:
    clock = Clock()
    watch = ProgressWatch(failing_seconds=60, stall_seconds=100, give_up_seconds=300, clock=clock)

    def after(seconds: float) -> str | None:
        clock.now += seconds
        return watch.note(step=1, num_groups=2, num_failures=3, cause="learner: disk full (9 times)")

    assert after(0) is None
    assert after(101) == "no group and no step for 101 s: learner: disk full (9 times)"
    assert after(50) is None
    watch.rest()
    assert after(250) is None, "held for a measurement, and reported already"
    with pytest.raises(NoProgress, match="no step for 5 minutes: learner: disk full"):
        after(51)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            "Traceback (most recent call last):\nasympo: port 80 is taken\nleaked 1 semaphore",
            "port 80 is taken",
        ),
        (
            "x\ntorch.OutOfMemoryError: no room\n[W123] destroy_group",
            "torch.OutOfMemoryError: no room",
        ),
        ("10:00:00 ERROR    learner: the disk is full\nbye", "10:00:00 ERROR    learner: the disk is full"),
        ("just this\n\n", "just this"),
        ("", ""),
    ],
)
def test_last_sentence_is_the_one_that_tells_why(said: str, sentence: str) -> None:
    assert last_sentence(said) == sentence


QUICK = RestartPolicy(first_wait_seconds=0.01, max_wait_seconds=0.02)


def make(tmp_path: Path, code: str) -> Service:
    command = [sys.executable, "-c", code]
    return Service(name="worker", command=command, log_path=tmp_path / "worker.log", policy=QUICK)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time; raise ValueError(f'no model at {time.time()}')", "ValueError: no model at "),
        ("import os; print('about to', flush=True); os.abort()", "was killed by SIGABRT; given up"),
    ],
)
def test_cause_that_stays_is_given_up_after_three_starts_however_slow(
    code: str, said: str, tmp_path: Path
) -> None:
    service = make(tmp_path, code).start()
    notes = look_after(service, until=lambda: service.has_ended)
    assert service.num_restarts == 2
    assert said in notes[-1]
    assert "given up after 3 starts in a row that ended the same way" in notes[-1]


def test_what_was_achieved_between_two_ends_makes_the_next_one_a_first(tmp_path: Path) -> None:
    service = make(tmp_path, "raise ValueError('now and then')").start()
    notes = []
    for _ in range(3):
        notes += look_after(service, until=lambda: service.is_waiting)
        service.note_progress()
        notes += look_after(service, until=lambda: not service.is_waiting)
    assert not any("given up" in note for note in notes)
    service.stop(deadline_seconds=10)


def test_long_life_makes_the_next_end_a_first(tmp_path: Path) -> None:
    service = make(tmp_path, "raise ValueError('once a day')")
    service.policy = dataclasses.replace(QUICK, max_restarts=4, long_life_seconds=0.0)
    service.start()
    notes = look_after(service, until=lambda: service.has_ended)
    assert "given up after 5 starts in 10 minutes" in notes[-1]


def test_steps_of_the_learner_are_progress_of_those_whom_an_environment_needs(tmp_path: Path) -> None:
    services = [make(tmp_path, "raise ValueError('now and then')").start() for _ in range(3)]
    learner = make(tmp_path, "pass")
    run = services_of(learner, generators=services[:1], gateway=services[1], environment=services[2])
    notes: list[str] = []
    for service in services * 3:
        notes += look_after(service, until=partial(getattr, service, "is_waiting"))
        run.note_progress(learner)
        notes += look_after(service, until=partial(getattr, service, "is_running"))
    assert not [note for note in notes if "given up" in note]
    for service in services:
        service.stop(deadline_seconds=10)


def test_cause_outside_this_machine_is_waited_for_longer(tmp_path: Path) -> None:
    service = make(tmp_path, f"raise SystemExit({BrokerUnavailable.exit_code})").start()
    look_after(service, until=lambda: service.has_ended)
    assert service.num_restarts == QUICK.max_restarts


def test_log_of_a_talkative_process_stays_small_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "service.log"
    with path.open("ab") as log:
        for number in range(3000):
            log.write(f"line {number}\n".encode())
            log.flush()
            keep_small(path, max_bytes=1000)
    kept = (tmp_path / "service.log.1").read_text() + path.read_text()
    assert kept.endswith("line 2999\n")
    assert "\0" not in kept
    assert len(kept) <= 2100


def test_notification_reaches_a_program_and_a_url_and_failures_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[dict[str, object]] = []

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204 if self.path == "/good" else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    door = HTTPServer(("127.0.0.1", 0), Door)
    threading.Thread(target=door.serve_forever, daemon=True).start()
    out, base = tmp_path / "heard.json", f"http://127.0.0.1:{door.server_port}"
    copy = [sys.executable, "-c", f"import sys; open({str(out)!r}, 'w').write(sys.stdin.read())"]
    message = {"run": "night", "event": "failed", "text": "the disk is full"}
    assert notify(command=copy, url=f"{base}/good", message=message) == []
    assert [json.loads(out.read_text())] == heard == [message]
    fail = [sys.executable, "-c", "raise SystemExit('no phone')"]
    problems = notify(command=fail, url=f"{base}/secret-path", message=message)
    assert problems[0] == "run.notify_command ended with exit code 1: no phone"
    assert "could not be called" in problems[1]
    assert "secret-path" not in problems[1]
    # What it leaves behind keeps its standard error.
    ended = tmp_path / "ended"
    leave = f"setsid sh -c \"sleep 20; touch '{ended}'\" & echo $! > '{out}'"
    assert notify(command=["sh", "-c", leave], url=None, message=message) == []
    assert not ended.exists()
    kill_group(int(out.read_text()))
    with no_http_server() as port:
        [strange] = notify(command=[], url=f"http://127.0.0.1:{port}/", message=message)
        assert "could not be called" in strange
        # A port that another program has by now.
        assert HttpStatus(host="127.0.0.1", port=port).get("/v1/status") is None
    [absent] = notify(command=["/no/such/program"], url=None, message=message)
    assert "does not start" in absent
    monkeypatch.setattr("tempfile.TemporaryFile", partial(open, tmp_path / "absent" / "file"))
    [silent] = notify(command=fail, url=None, message=message)
    assert silent == "run.notify_command ended with exit code 1: it said nothing"
    door.shutdown()


def test_signal_ends_a_notification_that_hangs_and_leaves_the_outcome_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started, is_over = tmp_path / "started", threading.Event()

    class Hang(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            is_over.wait()

    def told(command: list[str], url: str) -> list[str]:
        told_until = partial(notify_until, command=command, url=url, message={})
        ending: Any = SimpleNamespace(notify_end=lambda stop: told_until(stop=stop))
        _notify_end(ending)
        return capsys.readouterr().err.splitlines()

    # It has read its message before anybody loses patience: then it has been started in full.
    hang = ["sh", "-c", f"cat > /dev/null; echo $$ > '{started}'; kill -TERM $PPID; exec sleep 600"]
    assert told(hang, "http://127.0.0.1:9/") == [
        f"asympo: run.notify_{way} was given up (SIGTERM): it may not have been told"
        for way in ("command", "url")
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Hang) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        [said] = told([], f"http://127.0.0.1:{server.server_address[1]}/")
        assert "run.notify_url was given up (SIGINT)" in said
        is_over.set()
        server.shutdown()
