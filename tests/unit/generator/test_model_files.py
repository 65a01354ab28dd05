"""Finding the run's model."""

from pathlib import Path

import pytest
from asympo.common.errors import BadModel
from asympo.engines.model_files import local_model


def test_model_that_is_a_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    assert local_model(str(tmp_path)) == tmp_path


def test_model_that_is_nowhere_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        BadModel, match=r"is not a directory here and cannot be downloaded \(.*--model"
    ) as error:
        local_model(str(tmp_path / "absent" / "model"))
    assert "\n" not in str(error.value)
