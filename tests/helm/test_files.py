"""The programs that the chart brings along, run against real servers on loopback."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from asympo.common.clock import SystemClock
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import Broker, RunLog
from asympo.common.telemetry import MetricsEndpoint, new_registry
from asympo.learner.control import LearnerControl, LearnerState
from asympo.learner.log.heartbeat import Heartbeat
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.servers.http import HttpServer, build_api
from asympo.learner.settings import LearnerSettings

from tests.helm.conftest import CHART

REVISION = "0123456789012345678901234567890123456789"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"not wanted"}


class Hub(BaseHTTPRequestHandler):
    """Answers the two questions that a download asks the hub."""

    files = FILES

    def do_GET(self) -> None:
        if self.path.startswith(f"/api/models/team/tiny/revision/{REVISION}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.reply(json.dumps({"id": "team/tiny", "sha": REVISION, "siblings": siblings}).encode())
        elif self.path.startswith(f"/api/models/team/tiny/tree/{REVISION}"):
            listing: list[dict[str, Any]] = [
                {"type": "file", "path": name, "size": 1, "oid": ""} for name in self.files
            ]
            self.reply(json.dumps(listing).encode())
        else:
            content = self.files.get(self.path.rpartition("/")[2])
            self.reply(content or b"", status=404 if content is None else 200)

    do_HEAD = do_GET

    def reply(self, content: bytes, *, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetch(hub: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHART / "files/fetch_model.py"), "team/tiny", REVISION, str(directory)]
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(directory.parent / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_model_is_fetched_once_and_only_what_is_needed(hub: str, tmp_path: Path) -> None:
    directory = tmp_path / "models/team/tiny" / REVISION
    result = fetch(hub, directory)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]
    assert "is there already" in fetch("http://127.0.0.1:1", directory).stdout


def test_model_without_safetensors_leaves_no_directory(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "files", {"config.json": b"{}"})
    result = fetch(hub, tmp_path / "model")
    assert result.returncode != 0
    assert "has no *.safetensors file: choose a model or revision that has" in result.stderr
    assert not (tmp_path / "model").exists()


@pytest.fixture
def learner(broker_url: str, run_name: str) -> Iterator[tuple[LearnerControl, str]]:
    """A learner's core behind its own HTTP, which nothing trains."""
    clock = SystemClock()
    core = LearnerControl(settings=LearnerSettings(run=run_name), stop=StopSignal(), clock=clock)
    registry = new_registry(service="learner", version="test")
    broker = Broker.connect(broker_url)
    heartbeat = Heartbeat(
        run_log=RunLog(broker, run_name),
        learner=core,
        metrics=LearnerMetrics(registry),
        clock=clock,
        on_fenced=lambda error: None,
    )
    api = build_api(
        learner=core,
        why_not_alive=lambda: heartbeat.not_alive_reason,
        metrics_endpoint=MetricsEndpoint(registry),
    )
    server = HttpServer(api=api, host="127.0.0.1", port=0)
    server.start()
    yield core, f"http://127.0.0.1:{server.port}"
    server.stop()
    broker.close()


def check(url: str, min_generators: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHART / "files/check_release.py"), url, str(min_generators), "0"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_release_check_says_what_is_missing(learner: tuple[LearnerControl, str]) -> None:
    core, url = learner
    assert "does not answer" in check("http://127.0.0.1:1", 0).stderr
    assert "the learner is not ready: starting" in check(url, 0).stderr
    core.enter(LearnerState.WAITING)
    assert "0 of at least 1 generators report to the run" in check(url, 1).stderr
    passed = check(url, 0)
    assert passed.returncode == 0, passed.stderr
    assert "waiting, step 0, 0 generators" in passed.stdout
