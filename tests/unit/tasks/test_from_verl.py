"""The page for users of verl is true: its settings file reads verl's own layout and calls verl's function."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from asympo.cli import main

PAGE = Path(__file__).parents[3] / "docs" / "from-verl.md"
REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "openai/gsm8k" and extra_info["split"] == "train"
    return {"score": float(solution_str.endswith(ground_truth)), "acc": 1}
"""


def test_settings_of_the_page_score_rows_of_verl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert tomllib.loads(text)["learner"]["groups_per_step"] == 32
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for split, number in (("train", 7), ("test", 9)):
        row = {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": f"What is {number}?"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(number)},
            "extra_info": {"split": split, "index": 0},
        }
        parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "data" / f"{split}.parquet")
    (tmp_path / "run.toml").write_text(text)
    (tmp_path / "my_reward.py").write_text(REWARD)
    answers = [{"row": 1, "response": "#### 7"}, {"row": 1, "response": "#### 8"}]
    (tmp_path / "responses.jsonl").write_text("\n".join(map(json.dumps, answers)))
    assert main(["task", "score", "run.toml", "--responses", "responses.jsonl", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["reward"] for row in rows] == [1.0, 0.0]
