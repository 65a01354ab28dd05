"""Settings files for the paper's models read their data sets as they are on the hub, and score them right."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from asympo.cli import main
from asympo.learner.settings import LearnerSettings
from asympo.run.settings import read_run_file
from asympo.tasks.base import Task
from asympo.tasks.registry import load_task
from asympo.testing.tiny_model import write_tiny_model

EXAMPLES = Path(__file__).parents[3] / "examples"
GSM8K = {
    "question": "A pen costs $2 and a book costs {price}. What do 3 pens and 2 books cost?",
    "answer": "Pens: 3 * 2 = <<3*2=6>>6.\nBooks: 2 * {price} = {books}.\nTogether ${total}.\n#### {total}",
}
MATH = {
    "problem": "Find $x$ if $3x = {price}$.",
    "level": "Level 2",
    "type": "Algebra",
    "solution": "We guess $\\boxed{?}$, then divide: $x = \\boxed{\\frac{PRICE}{3}}.$ That {is} all.",
}
FILES = {
    "qwen3-1.7b-base.toml": (GSM8K, "{total}", "Solution:"),
    "qwen3-4b-base.toml": (MATH, "\\frac{PRICE}{3}", "Solution:"),
    "llama-3.2-3b-instruct.toml": (MATH, "\\frac{PRICE}{3}", None),
}


def row_of(layout: dict[str, str], price: int) -> dict[str, str]:
    filled = {"{price}": str(price), "{books}": f"{2 * price:,}", "{total}": f"{6 + 2 * price:,}"}
    filled["PRICE"] = str(price)
    for name, text in layout.items():
        for key, value in filled.items():
            text = text.replace(key, value)
        layout = {**layout, name: text}
    return layout


def local_copy(layout: dict[str, str], folder: Path) -> Path:
    """As `hf download` leaves a data set: Parquet files by split, in a folder for each subset."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for subset in ("main", "socratic"):
        (folder / subset).mkdir()
    for split, prices in (("train", (1, 2, 1700)), ("test", (4, 5))):
        table = pyarrow.Table.from_pylist([row_of(layout, price) for price in prices])
        for place in ("main", "socratic") if layout is GSM8K else (".",):
            parquet.write_table(table, folder / place / f"{split}-00000-of-00001.parquet")
    return folder


def task_of(name: str, data: Path | None = None) -> Task:
    overrides: dict[str, Any] = {"run": {"task": {"data": str(data)}}} if data else {}
    values = read_run_file(EXAMPLES / name, overrides=overrides).learner_values
    task = load_task(LearnerSettings.model_validate(values).task)
    task.prepare_scoring()
    return task


@pytest.mark.parametrize("name", FILES)
def test_file_reads_its_data_set_and_scores_it(name: str, tmp_path: Path) -> None:
    layout, right, cue = FILES[name]
    task = task_of(name, local_copy(layout, tmp_path))
    assert (len(task), len(task.held_out())) == (3, 2)
    prompt = task.prompt(2)
    answer = right.replace("{total}", "3,406").replace("PRICE", "1700")
    for given, reward in ((answer, 1.0), (answer.replace("7", "8").replace("3,4", "3,5"), 0.0)):
        assert task.score(prompt, f"So it is $\\boxed{{{given}}}$.") == reward
    assert task.score(prompt, "I do not know.") == 0.0
    settings = tomllib.loads((EXAMPLES / name).read_text())
    assert len(settings["run"]["task"]["revision"]) == 40, "a commit, which stays what it is"
    if cue is not None:
        assert prompt.text is not None
        assert prompt.text.endswith(cue)
        invented = f"\\boxed{{{answer}}}\n\nProblem: another one.\n\\boxed{{0}}"
        assert task.score(prompt, invented) == 1.0
        first_line = prompt.text.splitlines()[0]
        assert any(stop in f"\n{first_line}" for stop in settings["run"]["sampling"]["stop"])


def test_file_without_downloads_generates_its_problems() -> None:
    pytest.importorskip("reasoning_gym")
    values = read_run_file(EXAMPLES / "gsm-symbolic.toml").learner_values
    config = LearnerSettings.model_validate(values).task
    task = load_task(config.model_copy(update={"size": 20}))
    prompt = task.prompt(0)
    assert prompt.text is not None
    assert prompt.text.endswith("Solution:")
    assert task.score(prompt, f"It is <answer>{prompt.answer}</answer>") == 1.0
    assert task.score(prompt, "It is <answer>-1</answer>") < 0.5


def test_task_of_a_file_is_shown_without_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    copy = local_copy(GSM8K, tmp_path)
    flags = ["--run.task.data", str(copy), "--json"]
    assert main(["task", "show", *flags, str(EXAMPLES / "qwen3-1.7b-base.toml")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["num_prompts"], shown["num_held_out"]) == (3, 2)


@pytest.mark.slow
def test_dry_run_of_a_file_scores_right_and_wrong(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data").mkdir()
    write_tiny_model(tmp_path / "model")
    flags = [
        f"--run.model={tmp_path / 'model'}",
        f"--run.task.data={local_copy(MATH, tmp_path / 'data')}",
        f"--run.directory={tmp_path / 'runs'}",
        "--run.sampling.max-tokens=64",
    ]
    assert main(["run", str(EXAMPLES / "qwen3-4b-base.toml"), "--dry-run", *flags]) == 0
    said = capfd.readouterr().out
    assert "3 prompts, 2 held out" in said
    assert "reward 1.0" in said
    assert "response '': reward 0.0" in said
