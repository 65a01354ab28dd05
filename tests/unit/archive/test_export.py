"""An export of the log's backlog: what its rows say, and that they outlive a power cut."""

import json
import os
from pathlib import Path

import pytest
from asympo.common.archive import open_archive
from asympo.common.archive.export import export

from tests.unit.learner.test_segment import make_entry


@pytest.mark.parametrize(
    ("rewards", "advantages"),
    [((0.1, 0.1, 0.1), [0.0, 0.0, 0.0]), ((1.0, 0.0), [0.5, -0.5]), ((0.7,), [0.0])],
)
def test_group_that_waits_has_the_advantages_that_it_will_be_trained_with(
    tmp_path: Path, rewards: tuple[float, ...], advantages: list[float]
) -> None:
    out = tmp_path / "all.jsonl"
    assert export(open_archive(tmp_path), out, read_backlog=lambda _: [make_entry(1, rewards)]) == 1
    row = json.loads(out.read_text())
    assert [response["advantage"] for response in row["responses"]] == advantages


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_export_is_flushed_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"all.{suffix}"
    flush, replace = os.fsync, os.replace
    done: list[str] = []

    def noted_flush(descriptor: int) -> None:
        flush(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append("folder" if path.is_dir() else f"{path.stat().st_size} bytes")

    def noted_replace(source: Path, target: Path) -> None:
        replace(source, target)
        done.append("named")

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "replace", noted_replace)
    export(open_archive(tmp_path), out, read_backlog=lambda _: [make_entry(1, (1.0, 0.0))])
    assert done == [f"{out.stat().st_size} bytes", "named", "folder"]
