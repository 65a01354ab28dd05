"""A tiny study from the command line: one file a cell, resumed where it stopped, every number in the JSON."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from asympo.cli import main
from asympo.common.errors import BadSetting
from asympo.demo.model import cache_directory
from asympo.lab import command, presets
from asympo.lab.analysis import made_by
from asympo.lab.cell import CellResult
from asympo.lab.presets import PRESETS
from asympo.lab.report import MARKS, provenance
from asympo.lab.study import start_digest
from asympo.learner.step.compute import processor_class
from safetensors.torch import save_file

from tests.unit.lab.tiny import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Directory and JSON of one run."""
    directory = tmp_path_factory.mktemp("lab") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", TINY)
        run(directory)
    return directory, json.loads((directory / "summary.json").read_text())


def run(directory: Path, *flags: str) -> int:
    arguments = ["lab", "stability", "--preset", "tiny", "--grid", "full", "--workers", "1"]
    return main([*arguments, "--out", str(directory), *flags])


def test_study_reports_every_cell_with_its_seeds(study: tuple[Path, dict[str, Any]]) -> None:
    directory, summary = study
    plain = [row for row in summary["results"] if row["kind"] == "fixed"]
    assert {(row["arm"], row["staleness"], row["learning_rate"]) for row in plain} == {
        (arm, age, 1e-3) for arm in ("asympo", "grpo") for age in (0, 2)
    }
    for row in plain:
        assert row["seeds"] == [0, 1]
        assert len(row["final_accuracy"]) == len(row["collapsed"]) == 2
    assert set(summary["collapse_window"]) == {"asympo", "grpo"}
    assert summary["tuning"]["grpo"]["runs"] == summary["tuning"]["asympo"]["runs"] == 2
    assert summary["moonshot"]["best_current_policy_only"]["arm"] == "asympo"
    num_cells = 2 * 2 * 2 + 4 + 3
    assert len(list((directory / "cells").iterdir())) == num_cells
    (maker,) = summary["made_by"]
    assert maker["cells"] == num_cells
    for name in ("asympo", "torch", "transformers"):
        assert maker["versions"][name] == summary["versions"][name]
    assert maker["versions"]["device"] == processor_class("cpu")


def test_cells_draw_from_policies_of_the_age_asked_for(study: tuple[Path, dict[str, Any]]) -> None:
    cell = next((study[0] / "cells").glob("short_asympo_c*_k2_fixed_*_s0_n4_*.json"))
    steps = json.loads(cell.read_text())["result"]["steps"]
    assert [step["age"] for step in steps] == [0, 1, 2, 2]


def test_resume_runs_only_what_is_missing(
    study: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, before = study
    monkeypatch.setitem(presets.PRESETS, "tiny", TINY)
    cells = sorted((directory / "cells").iterdir())
    lost = cells[3].read_text()
    cells[3].unlink()
    written = {cell: cell.stat().st_mtime_ns for cell in cells if cell.exists()}
    document = directory / "page.md"
    document.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    published = directory.parent / "docs"
    assert run(directory, "--resume", "--json", "--update", str(document), "--publish", str(published)) == 0
    after = json.loads(capsys.readouterr().out)
    assert {cell: cell.stat().st_mtime_ns for cell in written} == written
    assert json.loads(cells[3].read_text()) == json.loads(lost), "a cell is the same when it is run again"
    assert after["results"] == before["results"]
    assert sorted(path.name for path in published.iterdir()) == [
        *("headline.md", "plots", "report.html", "report.md", "summary.json")
    ]
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| `grpo` * |" in text
    assert "old" not in text


def test_grid_of_another_kind_and_of_fresh_seeds_alone_has_a_report(
    study: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", replace(TINY, confirming_seeds=(0,)))
    out = shutil.copytree(study[0], tmp_path / "out")
    flags = ["--preset", "tiny", "--grid", "other", "--workers", "1", "--resume", "--out", str(out)]
    assert command.main(["stability", *flags]) == 0
    assert "| `tis` * |" in (out / "headline.md").read_text()


def test_cells_that_do_not_say_who_made_them_are_read_and_told_apart(
    study: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    cells = tmp_path / "cells"
    shutil.copytree(study[0] / "cells", cells)
    old, *_ = sorted(cells.glob("*_uniform_*.json"))
    values = json.loads(old.read_text())
    del values["result"]["made_by"]
    old.write_text(json.dumps(values))
    results = [CellResult.from_json(json.loads(path.read_text())["result"]) for path in cells.iterdir()]
    told = made_by(results)
    assert [each["cells"] for each in told] == [14, 1]
    assert told[1]["versions"] == {}
    assert "an unknown version: 1" in provenance({**study[1], "made_by": told})


def test_start_of_a_language_model_is_told_by_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = cache_directory() / "smollm2-135m-instruct-1"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    digests = set()
    for value in (0.0, 1.0):
        weights = {"model.embed_tokens.weight": torch.full((2, 2), value, dtype=torch.bfloat16)}
        save_file(weights, str(model / "model.safetensors"))
        digests.add(start_digest(presets.SMOLLM, tmp_path, "short"))
    assert len(digests) == 2


def test_results_are_not_overwritten_without_resume(
    study: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.PRESETS, "tiny", TINY)
    with pytest.raises(BadSetting, match="--resume"):
        command.main(["stability", "--preset", "tiny", "--out", str(study[0])])


LEFT_ALONE = """
import sys, time
from asympo.lab.study import set_up_worker
from multiprocessing import get_context

def wait_for_ever():
    set_up_worker()
    print("begun", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    get_context("spawn").Process(target=wait_for_ever).start()
    sys.stdin.read()
"""


def test_workers_of_a_study_that_was_killed_end_with_it(tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text(LEFT_ALONE)
    command = [sys.executable, str(script)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    # What multiprocessing keeps for itself ends as well.
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_report_shows_pictures_and_the_command(study: tuple[Path, dict[str, Any]]) -> None:
    directory = study[0]
    text = (directory / "report.md").read_text()
    for name in ("accuracy", "reward", "imbalance", "collapse", "products"):
        assert f"](plots/{name}.png)" in text
        assert (directory / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "asympo lab stability --preset tiny" in text
    page = (directory / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "| ---" not in page


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_every_arm_has_the_same_tuning_budget_and_rates(preset: presets.Preset) -> None:
    from asympo.lab.study import grid_specs, tuning_specs

    headline = preset.grids[0]
    specs = grid_specs(preset, headline, {})
    per_arm = {arm: [spec for spec in specs if spec.arm == arm] for arm in headline.arms}
    assert len({len(each) for each in per_arm.values()}) == 1
    tuning = tuning_specs(preset, headline.arms)
    assert len({sum(spec.arm == arm for spec in tuning) for arm in headline.arms}) == 1
    assert not {spec.seed for spec in tuning} & set(headline.seeds)


def test_paper_preset_refuses_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("asympo.run.prepare.machine.look_at_gpus", lambda environment: ((), None, ""))
    with pytest.raises(BadSetting, match="no GPU"):
        command.main(["stability", "--preset", "paper", "--out", str(tmp_path / "paper")])
    shown = capsys.readouterr().err
    assert "Qwen3-4B-Base" in shown
    assert "EFLOP" in shown
    from asympo.run.settings import read_run_file

    files = sorted((tmp_path / "paper").glob("*.toml"))
    assert len(files) == 3 * 4 * 4
    assert {read_run_file(path).learner_values["objective"] for path in files} == {
        *("asympo", "spo", "naive", "gpg")
    }


def test_document_without_marks_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(BadSetting, match=r"page\.md lacks the lines"):
        command.main(["stability", "--out", str(tmp_path / "out"), "--update", str(page)])
    assert not (tmp_path / "out").exists()


def test_unknown_grid_names_the_choices() -> None:
    with pytest.raises(BadSetting, match="headline, sides"):
        command.main(["stability", "--grid", "nothing", "--dry-run"])


@pytest.mark.parametrize("grids", [["confirm-stale"], ["confirm-sync", "confirm-stale"]])
def test_grid_of_what_passed_is_refused_with_nothing_before_it(grids: list[str]) -> None:
    flags = [word for grid in grids for word in ("--grid", grid)]
    with pytest.raises(BadSetting, match="such as headline, before it"):
        command.main(["stability", *flags, "--dry-run"])
    assert command.main(["stability", "--grid", "headline", *flags, "--dry-run"]) == 0
