"""Directories that no learner made: ignored, reported, and their fences are nobody's."""

from pathlib import Path

import pytest
from asympo.common.checkpoints.directory import step_names
from asympo.common.checkpoints.directory_steps import DirectorySteps
from asympo.common.checkpoints.manifest import open_sealed_json
from asympo.common.checkpoints.names import parse_name, parse_temporary
from asympo.common.checkpoints.store import POLICIES
from asympo.common.errors import BadSetting, CorruptCheckpoint
from asympo.common.names import directory_of_run
from asympo.learner.state.decision_files import open_decisions
from asympo.learner.state.decisions import Decisions

NINES = "9" * 5000


@pytest.mark.parametrize(
    "name",
    [
        f"step-00000001-f{10**20}",
        f"step-00000001-f{10**9 + 1}",
        f"step-{NINES}-f0001",
        f"step-00000001-f0001-n{NINES}",
        "step-٠٠٠٠٠٠٠١-f0001",
        "step-000000001-f0001",
        "step-00000001-f0001\n",
    ],
)
def test_name_that_no_learner_gives_is_none(name: str) -> None:
    assert parse_name(name) is None
    assert parse_temporary(f".tmp-{name}-{'0' * 16}") is None


def test_strange_directories_are_reported_once_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (f"step-00000001-f{10**20}", "step-\x1b[31m", "step-00000002-f0003"):
        (tmp_path / name).mkdir()
    for _ in range(2):
        assert [str(name) for name in step_names(tmp_path)] == ["step-00000002-f0003"]
    assert len(caplog.records) == 2
    assert "\x1b" not in caplog.text


def test_empty_directory_is_nobodys_fence(tmp_path: Path) -> None:
    steps = DirectorySteps(tmp_path, "r", POLICIES, keyframe_every=1)
    (steps.path / "step-00000009-f0900").mkdir(parents=True)
    assert steps.highest_fence() is None
    damaged = steps.path / "step-00000001-f0007"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    assert steps.highest_fence() == 7
    assert steps.sealed_fence() is None, "no learner stops for what it cannot read"
    made_up = steps.path / "step-00000001-f1000000000"
    made_up.mkdir()
    (made_up / "manifest.json").write_text("{}")
    assert steps.highest_fence() == 7


def test_decisions_of_a_higher_fence_that_cannot_be_read_are_nobodys(tmp_path: Path) -> None:
    files = open_decisions(tmp_path / "r")
    (tmp_path / "r" / "train" / "decisions-f0009-n0001.json").mkdir(parents=True)
    (tmp_path / "r" / "train" / "decisions-f0008-n0001.json").write_text("{}")
    (tmp_path / "r" / "train" / "decisions-f0007-n0001.json").symlink_to("/dev/zero")
    assert (files.highest_fence(), files.sealed_fence(), files.newest()) == (8, None, None)
    files.seal(Decisions(fence=2))
    assert files.sealed_fence() == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{",
        b"[" * 200_000,
        b'{"step": ' + b"9" * 5000 + b"}",
        b'{"step": 1e999}',
        b'{"a": NaN}',
    ],
)
def test_manifest_of_any_content_is_corrupt_and_nothing_else(content: bytes) -> None:
    with pytest.raises(CorruptCheckpoint):
        open_sealed_json(content, what="x")


@pytest.mark.parametrize("run", ["..", ".", "", "/etc", "a/b", "a\0", "a\n", "{a}", "a" * 65])
def test_run_that_is_no_name_is_no_path(run: str) -> None:
    with pytest.raises(BadSetting):
        directory_of_run(Path("runs"), run)
    assert directory_of_run(Path("runs"), "a.b") == Path("runs/a.b")
