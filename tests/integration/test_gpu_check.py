"""The GPU check: each of its steps on a CPU, and what the check does with slow and broken ones."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from asympo.common.errors import BadSetting
from asympo.doctor.command import main
from asympo.doctor.gpu.check import page_of, report_of, try_step, try_steps
from asympo.doctor.gpu.steps import STEPS, Found, Step
from asympo.run.prepare.machine import Machine

from tests.forked import ForkedPython

MACHINE = Machine(cores=(0,), memory_bytes=2**30, gpus=())
pytestmark = pytest.mark.timeout(330)


def test_machine_without_a_gpu_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asympo.doctor.gpu.check.look_at_machine", lambda: MACHINE)
    with pytest.raises(BadSetting, match="there is no GPU here: nothing was checked"):
        main(["--gpu", "--directory", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_command_ends_with_one_sentence_and_not_with_zero(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "asympo.cli", "doctor", "--gpu", "--directory", str(tmp_path)]
    environment = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == BadSetting.exit_code
    assert len(done.stderr.strip().splitlines()) == 1


def found_on_a_cpu(name: str, directory: Path) -> Found:
    """As the check runs a step; a fork, which has its libraries already. Limits are a GPU's, so none here."""
    command = [sys.executable, "-m", "asympo.doctor.gpu.steps", name, "cpu", str(directory)]
    output, errors = directory / "found", directory / "errors"
    step = ForkedPython(command, output=output, errors=errors, environment={})
    try:
        assert step.wait(300) == 0, errors.read_text()[-3000:]
    finally:
        step.send_signal(signal.SIGKILL)
    return Found(**json.loads(output.read_text().splitlines()[-1]))


@pytest.mark.parametrize("name", ["machine", "attention", "identity", "learner", "ranks"])
def test_step_finds_nothing_wrong_on_a_cpu(name: str, tmp_path: Path) -> None:
    found = found_on_a_cpu(name, tmp_path)
    assert found.is_ok, found.sentence
    assert not found.is_skipped
    assert found.figures


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["engine", "sharing"])
def test_step_that_starts_engines_finds_nothing_wrong_on_a_cpu(name: str, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    found = found_on_a_cpu(name, tmp_path)
    assert found.is_ok, found.sentence


def test_steps_fit_into_the_time_of_the_check() -> None:
    assert max(step.limit_seconds for step in STEPS) < 600


def test_step_that_is_too_slow_is_ended_and_said(tmp_path: Path) -> None:
    tried = try_step(Step(name="machine", shows="", limit_seconds=0.01), device="cpu", directory=tmp_path)
    assert not tried.found.is_ok
    assert "took more than" in tried.found.sentence


def test_step_that_breaks_gives_its_last_words(tmp_path: Path) -> None:
    tried = try_step(Step(name="nowhere", shows="", limit_seconds=60), device="cpu", directory=tmp_path)
    assert not tried.found.is_ok
    assert "nowhere_step" in tried.found.sentence


def test_steps_without_time_left_are_not_tried_and_count_as_wrong(tmp_path: Path) -> None:
    said: list[str] = []
    tried = try_steps(STEPS[:1], device="cpu", directory=tmp_path, say=said.append, total_seconds=0)
    assert [each.found.is_ok for each in tried] == [False]
    assert said[0].startswith("WRONG machine: not tried")


def test_report_is_json_and_a_page_with_every_figure(tmp_path: Path) -> None:
    tried = try_steps(STEPS[:1], device="cpu", directory=tmp_path, say=lambda text: None)
    report = json.loads(json.dumps(report_of(MACHINE, tried)))
    assert report["is_healthy"]
    assert report["steps"][0]["figures"]["torch"]
    page = page_of(report)
    assert page.startswith("# GPU check: no GPU")
    assert f"| torch | {report['steps'][0]['figures']['torch']} |" in page


def test_skipped_step_is_not_wrong(tmp_path: Path) -> None:
    assert Found(sentence="one GPU", is_skipped=True).is_ok
