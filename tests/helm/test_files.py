"""The programs that the chart brings along, run against real servers on loopback."""

import contextlib
import errno
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
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
from asympo.testing import hub

from tests.helm.conftest import CHART

REVISION = "0123456789012345678901234567890123456789"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"not wanted"}


@contextlib.contextmanager
def serving(files: dict[str, bytes], directory: Path) -> Iterator[str]:
    """A hub with these files of one model."""
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    with hub.serve(directory, repository="team/tiny", revision=REVISION) as url:
        yield url


def fetch(url: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHART / "files/fetch_model.py"), "team/tiny", REVISION, str(directory)]
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(directory.parent / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_model_is_fetched_once_and_only_what_is_needed(tmp_path: Path) -> None:
    directory = tmp_path / "models/team/tiny" / REVISION
    with serving(FILES, tmp_path / "hub") as url:
        result = fetch(url, directory)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "model.safetensors"]
    assert "is there already" in fetch("http://127.0.0.1:1", directory).stdout


def test_model_without_safetensors_leaves_no_directory(tmp_path: Path) -> None:
    with serving({"config.json": b"{}"}, tmp_path / "hub") as url:
        result = fetch(url, tmp_path / "model")
    assert result.returncode != 0
    assert "has no *.safetensors file: choose a model or revision that has" in result.stderr
    assert not (tmp_path / "model").exists()


def test_model_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def download(repository: str, *, local_dir: Path, **options: object) -> None:
        (local_dir / "parts").mkdir()
        for name in ("config.json", "model.safetensors", "parts/more.json"):
            (local_dir / name).write_text("{}")

    def noting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any) -> Any:
            target = os.readlink(f"/proc/self/fd/{given[0]}") if name == "fsync" else str(given[1])
            done.append(f"{name} {Path(target).relative_to(tmp_path)}".replace(os.uname().nodename, "HERE"))
            return call(*given)

        return noted

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    program = runpy.run_path(str(CHART / "files/fetch_model.py"))
    monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
    monkeypatch.setattr(os, "rename", noting("rename", os.rename))
    program["fetch"]("team/tiny", REVISION, tmp_path / "models/tiny")
    partial = "fsync models/tiny.partial-HERE"
    renamed = done.index("rename models/tiny")
    wanted = ("", "/config.json", "/model.safetensors", "/parts", "/parts/more.json")
    assert {f"{partial}{each}" for each in wanted} <= set(done[:renamed])
    assert done[renamed + 1 :] == ["fsync models"]
    done.clear()
    program["fetch"]("team/tiny", REVISION, tmp_path / "models/tiny")
    assert done == ["fsync models"]


def test_model_whose_name_cannot_be_flushed_is_told_by_that_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    models.mkdir()

    def refuse(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")) == models:
            raise OSError(errno.EIO, "the disk fails")

    def download(repository: str, *, local_dir: Path, **options: object) -> None:
        for name in ("config.json", "model.safetensors"):
            (local_dir / name).write_text("{}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    program = runpy.run_path(str(CHART / "files/fetch_model.py"))
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="the disk fails"):
        program["fetch"]("team/tiny", REVISION, models / "tiny")


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
        on_lost=lambda error: None,
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


def check(url: str, min_generators: int, *paths: Path) -> subprocess.CompletedProcess[str]:
    script = str(CHART / "files/check_release.py")
    command = [sys.executable, script, url, str(min_generators), "0", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_release_check_says_what_is_missing(learner: tuple[LearnerControl, str], tmp_path: Path) -> None:
    core, url = learner
    (tmp_path / "empty").mkdir()
    (tmp_path / "reward.py").write_text("x = 1")
    for empty in (tmp_path / "empty", tmp_path / "gone"):
        assert f"nothing lies at {empty}: look at" in check(url, 0, tmp_path / "reward.py", empty).stderr
    assert "does not answer" in check("http://127.0.0.1:1", 0).stderr
    assert "the learner is not ready: starting" in check(url, 0).stderr
    core.enter(LearnerState.WAITING)
    assert "0 of at least 1 generators report to the run" in check(url, 1).stderr
    passed = check(url, 0, tmp_path / "reward.py")
    assert passed.returncode == 0, passed.stderr
    assert "waiting, step 0, 0 generators" in passed.stdout
