"""The ready evaluations read their data sets as they are on the hub, and score them right."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from asympo.cli import main
from asympo.evaluator.config import EvalConfig
from asympo.learner.settings import LearnerSettings
from asympo.run.settings import read_run_file
from asympo.tasks.registry import load_task

FILE = Path(__file__).parents[3] / "examples" / "math-evals.toml"
TABLES = {table["name"]: table for table in tomllib.loads(FILE.read_text())["run"]["evals"]}
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "gsm8k": ({"question": "Pens?", "answer": "3 * 2 = <<3*2=6>>6.\n#### 1,206"}, "1206", "1207"),
    "math-500": (
        {
            **{"problem": "Polar?", "solution": "So \\boxed{?}.", "subject": "Precalculus", "level": 2},
            **{"unique_id": "test/p/807.json", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)"},
        },
        "(3, \\pi/2)",
        "(3, \\pi/3)",
    ),
    "minerva": ({"question": "How far?", "answer": "4.5e33"}, "4.5e33", "4.6e33"),
    "amc-2023": ({"id": 0, "answer": "27.0", "url": "u", "question": "Where?"}, "27", "28"),
    "aime-2024": (
        {
            **{"id": 60, "problem": "Walk?", "solution": "It is \\boxed{?}.", "answer": "025"},
            **{"url": "u", "year": "2024"},
        },
        "25",
        "24",
    ),
    "aime-2025": ({"problem": "Bases?", "answer": "70", "id": "0"}, "70", "71"),
}


def test_each_ready_evaluation_is_known_here() -> None:
    assert set(TABLES) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_evaluation_reads_its_data_set_and_scores_it(name: str, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row, right, wrong = ROWS[name]
    table = TABLES[name]
    assert len(table["revision"]) == 40, "a commit, which stays what it is"
    folder = tmp_path / table.get("subset", ".")
    folder.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist([row]), folder / f"{table['split']}-00000-of-00001.parquet")
    of_run = LearnerSettings.model_validate(read_run_file(FILE).learner_values).task
    config = EvalConfig.model_validate({**table, "data": str(tmp_path)})
    task = load_task(config.task_config(of_run))
    task.prepare_scoring()
    [prompt] = config.choose(task)
    assert prompt.text is not None
    assert prompt.text.endswith(f"{row.get('problem') or row['question']}\n\nSolution:")
    assert task.score(prompt, f"So it is $\\boxed{{{right}}}$.") == 1.0
    assert task.score(prompt, f"So it is $\\boxed{{{wrong}}}$.") == 0.0
    assert task.score(prompt, "I do not know.") == 0.0


def test_evaluation_that_is_not_in_the_cache_is_named_offline(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert main(["run", str(FILE), "--check-config"]) == 0
    capsys.readouterr()
    assert main(["eval", str(tmp_path), str(FILE), "--eval", "aime-2025"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "math-ai/aime25" in said
