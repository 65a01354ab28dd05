"""A run in which nothing can succeed says so, backs off, and ends as failed with the reason."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from asympo.cli import main
from asympo.common.errors import NoProgress
from asympo.run.events import read_events
from asympo.testing.run_process import RunProcess


@pytest.mark.timeout(600)
def test_reward_that_raises_on_every_response_ends_the_run_with_its_words(
    start: Callable[..., RunProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "always_raises.py").write_text(
        "def score(prompt, response_text):\n    raise ValueError('broken judge')\n"
    )
    rows = [{"prompt": f"say {number}", "answer": str(number)} for number in range(50)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heard = tmp_path / "heard.json"
    write = (
        "import json, pathlib, sys\n"
        "said = json.load(sys.stdin)\n"
        "directory = pathlib.Path(said['directory'])\n"
        "said['noted'] = json.loads((directory / 'run.json').read_text())['failure']\n"
        "said['pages'] = [path.name for path in directory.glob('report.html')]\n"
        f"open({str(heard)!r}, 'a').write(json.dumps(said))"
    )
    monkeypatch.chdir(tmp_path)
    run = start(
        "--run.evaluate=false",
        "--run.failing-seconds=8",
        f"--run.notify-command={json.dumps([sys.executable, '-c', write])}",
        "--learner.task.name=jsonl",
        "--learner.task.path=rows.jsonl",
        "--learner.task.scoring=python:always_raises:score",
        "--generator.allow-python=true",
    )
    assert run.wait(400) == NoProgress.exit_code, run.log
    directory = tmp_path / "runs" / "tiny"
    last = run.log.strip().splitlines()[-1]
    assert last.startswith("asympo: for ")
    assert "prompts failed: generator-0: " in last
    assert "times) (run.failing_seconds)" in last
    assert "could not be scored: scoring raised ValueError: broken judge (" in run.log
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["failure"] in last
    assert any("broken judge" in line for line in summary["warnings"])
    size = sum(path.stat().st_size for path in (directory / "logs").iterdir())
    assert size < 300_000, "it backs off"
    assert read_events(directory)[-1]["text"].startswith("failed at step 0: for ")
    said = json.loads(heard.read_text())
    assert (said["event"], said["noted"], said["pages"]) == ("failed", summary["failure"], ["report.html"])
    assert json.loads((directory / "run.json").read_text())["failure"] == summary["failure"]


@pytest.mark.timeout(300)
def test_service_that_cannot_start_ends_the_run_with_its_own_last_sentence(
    start: Callable[..., RunProcess], tmp_path: Path
) -> None:
    run = start("--generator.simulated.faults.no-such-thing=1")
    assert run.wait(200) == 2
    assert "no_such_thing" in run.log.strip().splitlines()[-1]


@pytest.mark.timeout(600)
def test_run_behind_a_proxy_that_nobody_answers_measures_and_finishes(
    start: Callable[..., RunProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    run = start("--learner.total-steps=3", "--learner.show-samples=true")
    assert run.wait(400) == 0, run.log
    directory = tmp_path / "runs" / "tiny"
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["held_out_accuracy_before"] is not None
    assert summary["held_out_accuracy_after"] is not None
    page = (directory / "report.html").read_text()
    assert "finished at step 3" in page
    assert "data:image/png;base64," in page
    assert read_events(directory)[-1]["text"] == "finished at step 3"


def test_dry_run_that_finds_an_error_fails(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken_judge.py").write_text("def score(prompt, response_text):\n    raise KeyError('x')\n")
    (tmp_path / "rows.jsonl").write_text(
        '{"prompt": "say 1", "answer": "1"}\n{"prompt": "2", "answer": "2"}\n'
    )
    monkeypatch.chdir(tmp_path)
    flags = (
        *("--run.task.name=jsonl", "--run.task.path=rows.jsonl"),
        *("--run.task.scoring=python:broken_judge:score", "--generator.allow-python=true"),
    )
    assert main(["run", str(config), "--dry-run", *flags]) == 2
    assert "cannot be scored: scoring raised KeyError: 'x'" in capsys.readouterr().err
