"""A run ended in ways of every kind, short: the full one is a command."""

from pathlib import Path

import pytest
from asympo.chaos.lone_run import End, LoneRun
from asympo.chaos.volume import Volume
from asympo.run.events import read_events


@pytest.mark.timeout(900)
def test_every_end_leaves_nothing_behind_and_says_why(tmp_path: Path) -> None:
    run = LoneRun(directory=tmp_path / "lone", seed=0, say=print)
    meet(run, End.TERMINAL)
    step = max(int(state.name.split("-")[1]) for state in (run.path / "train").glob("step-*"))
    assert read_events(run.path)[-1]["text"] == f"stopped at step {step} by SIGHUP"
    meet(run, End.MOVED, End.OTHER_BROKER, End.NO_ROOM)


@pytest.mark.timeout(900)
def test_disk_that_is_full_or_read_only_ends_a_run_with_that_reason(tmp_path: Path) -> None:
    if why_not := Volume.why_not(tmp_path / "probe"):
        pytest.skip(f"no disk can be mounted here: {why_not}")
    meet(LoneRun(directory=tmp_path / "lone", seed=0, say=print), End.FULL, End.READ_ONLY)


def meet(run: LoneRun, *ends: End) -> None:
    for end in ends:
        run.meet(end)
    assert run.report.problems == []
    assert run.report.orphans == run.report.steps_lost == 0
