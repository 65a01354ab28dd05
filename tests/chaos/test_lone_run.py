"""A run ended in ways of every kind, short: the full one is a command."""

from pathlib import Path

import pytest
from asympo.chaos.lone_run import End, LoneRun


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "ends", [[End.TERMINAL, End.MOVED, End.OTHER_BROKER, End.NO_ROOM]], ids=["four ends"]
)
def test_every_end_leaves_nothing_behind_and_says_why(
    ends: list[End], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = LoneRun(directory=tmp_path / "lone", seed=0, say=print)
    for end in ends:
        run.meet(end)
    assert run.report.problems == []
    assert run.report.orphans == run.report.steps_lost == 0
