"""The supervisor beside services of which only their processes and what they say are there."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import Broker, RunLog
from asympo.local.process import Process
from asympo.local.service import RestartPolicy, Service
from asympo.run import supervisor as module
from asympo.run.console.view import SilentView
from asympo.run.directory import RunDirectory
from asympo.run.events import read_events
from asympo.run.held_out import measurements
from asympo.run.held_out.evaluation import Accuracy
from asympo.run.held_out.measurements import HeldOutMeasurements
from asympo.run.processes.services import Services
from asympo.run.processes.trouble import ProgressWatch
from asympo.run.settings import RunSection
from asympo.run.supervisor import Supervisor

from tests.integration.rollout_log.conftest import start_run


class Said(ThreadingHTTPServer):
    """What the services of a run say of themselves, by path."""

    def __init__(self) -> None:
        said: dict[str, Any] = {"/v1/status": {"policy_step": 0, "step": 0}}

        class Door(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(said.get(self.path, {})).encode())

            def log_message(self, *_: object) -> None:
                """Not on the terminal."""

        super().__init__(("127.0.0.1", 0), Door)
        self.status = said["/v1/status"]


@pytest.fixture
def said() -> Iterator[Said]:
    server = Said()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[[str], Service]]:
    started: list[Process] = []

    def start(name: str) -> Service:
        policy = RestartPolicy(first_wait_seconds=0.01)
        one = Service(name=name, command=["sleep", "60"], log_path=tmp_path / f"{name}.log", policy=policy)
        started.append(one.start())
        return one

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def make(said: Said, service: Callable[[str], Service], tmp_path: Path) -> Callable[..., Supervisor]:
    def supervisor(held_out: HeldOutMeasurements | None = None, **others: Service) -> Supervisor:
        door = SimpleNamespace(settings=SimpleNamespace(http_host="", http_port=said.server_port))
        directory = RunDirectory(tmp_path / "tiny")
        directory.path.mkdir()
        absent = dict.fromkeys(("broker", "evaluator", "gateway", "environment"))
        services = Services(
            learner=service("learner"), generators=[service("generator-0")], broker_url="", description=(),
            **{**absent, **others},  # type: ignore[arg-type]
        )  # fmt: skip
        plan: Any = SimpleNamespace(
            learner=door,
            generators=[door],
            evaluator=None,
            page_url="",
            file=SimpleNamespace(run=RunSection()),
        )
        return Supervisor(
            plan=plan, services=services, directory=directory, view=SilentView(), stop=StopSignal(),
            held_out=held_out,
        )  # fmt: skip

    return supervisor


def notes(tmp_path: Path) -> list[str]:
    return [str(event["text"]) for event in read_events(tmp_path / "tiny")]


def test_groups_that_a_gateway_appends_are_progress(
    make: Callable[..., Supervisor], service: Callable[[str], Service], said: Said, tmp_path: Path
) -> None:
    gateway = service("gateway")
    supervisor, now = make(gateway=gateway), [0.0]
    supervisor._progress = ProgressWatch(
        failing_seconds=60, stall_seconds=100, give_up_seconds=300, clock=lambda: now[0]
    )

    def turn(*, appended: int | None) -> None:
        said.status["appended"] = appended
        now[0] += 101
        gateway._same_ends = 2
        supervisor._poll()
        supervisor._examine()
        supervisor._look_for_trouble()

    for number in range(1, 6):
        turn(appended=number)
        assert gateway._same_ends == 0, "it achieved something"
    assert notes(tmp_path) == []
    turn(appended=None)
    turn(appended=5)
    assert notes(tmp_path) == ["no group and no step for 101 s"], "a learner that starts again appends none"
    assert gateway._same_ends == 2


class Asked(threading.Thread):
    """In place of a measurement: what happens in it, by its number."""

    accuracy: Accuracy | None = None
    problem: str | None = None
    what_happens: list[Callable[["Asked"], None]]

    def __init__(self, **_: object) -> None:
        super().__init__(daemon=True)
        self.happens = self.what_happens.pop(0)

    def run(self) -> None:
        self.happens(self)


@pytest.fixture
def held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HeldOutMeasurements:
    monkeypatch.setattr(measurements, "Evaluation", Asked)
    monkeypatch.setattr(measurements, "render_held_out", lambda *_, **__: SimpleNamespace(prompts=[1]))
    monkeypatch.setattr(module, "_EVALUATION_SECONDS", 20.0)
    return HeldOutMeasurements(
        directory=tmp_path, learner_settings=tmp_path / "learner.toml", settings=SimpleNamespace(),
        generator_address="", max_prompts=8,
    )  # fmt: skip


@pytest.fixture
def run_log(broker_url: str, run_name: str) -> Iterator[RunLog]:
    """Of a run whose last policy is announced."""
    broker = Broker.connect(broker_url)
    log = RunLog(broker, run_name)
    start_run(log)
    yield log
    broker.close()


def test_generator_that_dies_while_the_last_policy_is_measured_is_started_again_and_measured(
    make: Callable[..., Supervisor], held_out: HeldOutMeasurements, run_log: RunLog
) -> None:
    supervisor, never = make(held_out), threading.Event()
    [generator] = supervisor._services.generators

    def dies(asked: Asked) -> None:
        generator.kill_at_once()
        while generator.is_running:
            never.wait(0.01)
        asked.problem = "no generator answers"

    def answers(asked: Asked) -> None:
        asked.accuracy = Accuracy(num_correct=1, num_prompts=2, policy_step=0, mean_reward=0.5)

    Asked.what_happens = [dies, answers]
    last = supervisor._finish(run_log)
    assert last is not None
    assert last.is_served
    assert held_out.after is not None
    assert held_out.after.policy_step == 0
    assert generator.num_restarts == 1


def test_generator_is_looked_after_and_a_stop_is_heard_while_the_last_policy_is_measured(
    make: Callable[..., Supervisor], held_out: HeldOutMeasurements, run_log: RunLog, tmp_path: Path
) -> None:
    supervisor, never = make(held_out), threading.Event()
    [generator] = supervisor._services.generators

    def hangs(asked: Asked) -> None:
        generator.kill_at_once()
        while not generator.num_restarts:
            never.wait(0.01)
        supervisor._stop.set("SIGINT")
        never.wait()

    Asked.what_happens = [hangs]
    last = supervisor._finish(run_log)
    assert last is not None
    assert last.problem == "the run was stopped before the last policy was measured"
    assert "generator-0 started again (restart 1)" in notes(tmp_path)


def test_evaluations_that_are_not_waited_for_are_told(
    make: Callable[..., Supervisor],
    service: Callable[[str], Service],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    supervisor = make(evaluator=service("evaluator"))
    monkeypatch.setattr(module, "_EVALUATION_SECONDS", 0.0)
    supervisor._wait_for_evaluator()
    assert notes(tmp_path) == ["evaluations of the last policy are left out after 0 s"]
