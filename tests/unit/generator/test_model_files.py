"""Finding the run's model."""

import json
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
import pytest
from asympo.common.errors import BadModel
from asympo.engines.model_files import local_model, weight_files
from huggingface_hub.utils._paths import filter_repo_objects

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
TWICE = [*SHARDS, INDEX, "consolidated.safetensors", "config.json", "pytorch_model.bin"]


def test_model_that_is_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    assert local_model(str(tmp_path)) == tmp_path


def test_model_that_is_nowhere_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        BadModel, match=r"is not a directory here and cannot be downloaded \(.*--model"
    ) as error:
        local_model(str(tmp_path / "absent" / "model"))
    assert "\n" not in str(error.value)


def test_weights_that_come_in_two_forms_are_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(model: str, *, allow_patterns: list[str], ignore_patterns: Sequence[str] = ()) -> str:
        fetched.extend(
            filter_repo_objects(TWICE, allow_patterns=allow_patterns, ignore_patterns=[*ignore_patterns])
        )
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert local_model("mistralai/both") == tmp_path
    assert fetched == [*SHARDS, INDEX, "config.json"]


def test_weight_files_are_those_that_are_loaded(tmp_path: Path) -> None:
    names = [*SHARDS, "consolidated.safetensors"]
    for name in names:
        (tmp_path / name).touch()
    assert {path.name for path in weight_files(tmp_path)} == {*names}
    index = tmp_path / INDEX
    index.write_text(json.dumps({"weight_map": {"a": SHARDS[1], "b": SHARDS[0], "c": SHARDS[1]}}))
    assert [path.name for path in weight_files(tmp_path)] == SHARDS
    index.write_text("{}")
    with pytest.raises(BadModel, match=r"index\.json cannot be read: KeyError"):
        weight_files(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]
