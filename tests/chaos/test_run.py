"""`asympo chaos` itself: a short seeded run of every kind, and builds whose promises were switched off."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asympo
import psutil
import pytest
from asympo.chaos.schedule import FaultKind, Window

from tests.conftest import require

PACKAGE = Path(asympo.__file__).parent
SCRIPTS = Path("asympo/common/rollout_log/scripts")


def chaos(directory: Path, *flags: str, root: Path = PACKAGE.parent) -> tuple[int, dict[str, Any], str]:
    """Exit code, report, and what it said besides."""
    command = [sys.executable, "-m", "asympo.cli", "chaos", "--json", "--directory", str(directory), *flags]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.count("\n") == 1, done.stderr[-4000:]
    return done.returncode, json.loads(done.stdout), done.stderr[-4000:]


@pytest.fixture(autouse=True)
def compiler() -> None:
    require(shutil.which("cc") is not None, "a C compiler")


@pytest.mark.timeout(300)
def test_short_run_of_every_kind_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    code, report, said = chaos(tmp_path / "chaos", "--kills", "14", "--seed", "5")
    assert code == 0, said
    assert report["problems"] == []
    assert report["kills"] == sum(report["faults"].values()) == 14
    assert all(report["faults"][kind.value] >= 1 for kind in FaultKind)
    assert all(report["windows"][window.value] >= 1 for window in Window)
    assert (report["groups_lost"], report["groups_trained_twice"]) == (0, 0)
    assert report["prompts_answered"] == report["groups_trained"] > 100
    assert report["weights_identical"] is True
    assert report["recovery_seconds_max"] > 0


@pytest.mark.timeout(120)
def test_interrupted_run_leaves_no_process_behind(tmp_path: Path) -> None:
    directory = tmp_path / "chaos"
    command = [sys.executable, "-m", "asympo.cli", "chaos", "--kills", "14", "--directory", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        assert "faults follow" in process.stdout.readline()
        started = psutil.Process(process.pid).children(recursive=True)
        # Broker, two generators with a scorer each, learner.
        assert len(started) >= 6
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    _, alive = psutil.wait_procs(started, timeout=5)
    assert alive == []


def mutant(directory: Path, change: Callable[[str], str], script: str) -> Path:
    """Import root of a copy of the product in which one script is another."""
    root = directory / "services"
    shutil.copytree(PACKAGE, root / "asympo", ignore=shutil.ignore_patterns("__pycache__"))
    path = root / SCRIPTS / script
    source = path.read_text()
    changed = change(source)
    assert changed != source
    path.write_text(changed)
    return root


def without_dedupe(source: str) -> str:
    """Finds no earlier append of its token, and takes a lease for held whose group was appended."""
    held, ended = "redis.call('HGET', leases, token)", "redis.call('HDEL', leases, token)\n"
    for promise, broken in (
        ("if answered then", "if false then"),
        (held, f"{held} or redis.call('GET', token)"),
        (ended, f"redis.call('SET', token, {held})\n{ended}"),
        ("redis.call('ZSCORE', deadlines, token) or '0'", "redis.call('ZSCORE', deadlines, token) or '9e15'"),
    ):
        assert promise in source
        source = source.replace(promise, broken, 1)
    return source


def without_fencing(source: str) -> str:
    """Takes every learner for the owner."""
    head = "local function fence_problem(run)\n"
    assert head in source
    return source.replace(head, head + "  do return nil end\n")


@pytest.mark.timeout(200)
def test_build_without_dedupe_fails(tmp_path: Path) -> None:
    root = mutant(tmp_path, without_dedupe, "generator/append.lua")
    flags = ("--kills", "1", "--seed", "1", "--only", "duplicate_append")
    code, report, said = chaos(tmp_path / "chaos", *flags, root=root)
    assert code == 1, said
    assert "reached the broker twice" in "\n".join(report["problems"])


@pytest.mark.timeout(200)
def test_build_without_fencing_fails(tmp_path: Path) -> None:
    root = mutant(tmp_path, without_fencing, "include/fence.lua")
    flags = ("--kills", "1", "--seed", "1", "--only", "zombie_learner")
    code, report, said = chaos(tmp_path / "chaos", *flags, root=root)
    assert code == 1, said
    assert "of a superseded learner with OK" in "\n".join(report["problems"])
