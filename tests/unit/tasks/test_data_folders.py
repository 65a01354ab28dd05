"""Data sets that lie in folders: the split and the subset that are named, and no other."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from asympo.common.errors import BadSetting
from asympo.tasks.config import TaskConfig

from tests.unit.tasks.test_data import ROWS, everything, load


def test_folder_of_the_hub_gives_the_split_and_the_subset_that_are_named_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def write(place: str, prompt: str) -> None:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table({"prompt": [prompt]}), tmp_path / place)

    def prompts(data: Path = tmp_path, **options: Any) -> list[str | None]:
        task = load(TaskConfig(data=str(data), prompt_as="text", held_out_fraction=0, **options))
        return [prompt.text for prompt in everything(task)]

    for name in (
        "train-00000-of-00002",
        "train-00001-of-00002",
        "train_sft-00000-of-00001",
        "trainer",
        "test",
    ):
        write(f"main/{name}.parquet", f"main {name}")
    assert prompts() == ["main train-00000-of-00002", "main train-00001-of-00002"]
    write("other/train.parquet", "other train")
    assert prompts(split="test") == ["main test"]
    assert prompts(subset="other") == prompts(tmp_path / "other") == ["other train"]
    assert prompts(subset="main", split="train_sft") == ["main train_sft-00000-of-00001"]
    with pytest.raises(BadSetting, match=r"split train in 2 folders: set task.subset to one of main, other"):
        prompts()
    assert not caplog.messages
    assert prompts(subset="other", revision="v1") == ["other train"]
    assert caplog.messages[0].startswith("task.revision v1 counts for nothing, as task.data")
    with pytest.raises(BadSetting, match=r"no folder for task.subset mian, only main, other"):
        prompts(subset="mian")
    assert prompts(tmp_path / "other", subset="default") == ["other train"]
    with pytest.raises(
        BadSetting, match=r"other is a folder without .* \(its Parquet files: train.parquet\)"
    ):
        prompts(subset="other", split="tra")


@pytest.mark.parametrize(
    ("written", "split", "is_told"),
    [
        (None, "test", True),
        ("train", "test", True),
        ("test", "train", False),
        ("test", "test", False),
        ("test[:50%]", "test", False),
        ("train+test", "test", False),
        ("test[:50%]", "test[:50%]", False),
        ("train+test", "train+test", False),
    ],
)
def test_split_of_one_saved_data_set_is_told_to_count_for_nothing_unless_its_rows_are_of_it(
    written: str | None, split: str, is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS, split=written).save_to_disk(str(tmp_path))
    task = load(TaskConfig(data=str(tmp_path), split=split, held_out_fraction=0))
    assert len(task) == len(ROWS)
    assert any(f"task.split {split} counts for nothing" in each for each in caplog.messages) is is_told
    with pytest.raises(BadSetting, match="is one data set that save_to_disk wrote, which has no split"):
        load(TaskConfig(data=str(tmp_path), held_out_split=split))
