"""A run ended in ways of every kind, short: the full one is a command."""

from pathlib import Path

import pytest
from asympo.chaos.lone_run import End, LoneRun
from asympo.chaos.volume import Volume


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "ends", [[End.TERMINAL, End.MOVED, End.OTHER_BROKER, End.NO_ROOM]], ids=["four ends"]
)
def test_every_end_leaves_nothing_behind_and_says_why(
    ends: list[End], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meet(ends, tmp_path)


@pytest.mark.timeout(900)
def test_disk_that_is_full_or_read_only_ends_a_run_with_that_reason(tmp_path: Path) -> None:
    if why_not := Volume.why_not(tmp_path / "probe"):
        pytest.skip(f"no disk can be mounted here: {why_not}")
    meet([End.FULL, End.READ_ONLY], tmp_path)


def meet(ends: list[End], tmp_path: Path) -> None:
    run = LoneRun(directory=tmp_path / "lone", seed=0, say=print)
    for end in ends:
        run.meet(end)
    assert run.report.problems == []
    assert run.report.orphans == run.report.steps_lost == 0
