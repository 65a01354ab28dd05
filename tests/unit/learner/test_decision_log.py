"""What a run has decided: kept before it is used, found again wherever it lies, never measured twice."""

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import BadSetting, CorruptCheckpoint, Fenced, PublishFailed, UnknownVersion
from asympo.common.lifecycle import StopSignal
from asympo.learner.model.forward_path import FAST, ForwardPath
from asympo.learner.settings import LearnerSettings
from asympo.learner.state import decide
from asympo.learner.state.decide import DecisionLog, find_decisions
from asympo.learner.state.decision_files import open_decisions
from asympo.learner.state.decisions import Decision, Decisions, decode_decisions, encode_decisions
from asympo.learner.state.store import TrainingState
from asympo.learner.step import trial

SETTINGS = LearnerSettings(run="r", num_threads=1, compute_dtype="float32")


class Paths:
    """Tries of the model's ways."""

    def __init__(self) -> None:
        self.count = 0
        self.answer = ForwardPath(attention="eager", alone_above=0)

    def find(self) -> ForwardPath:
        self.count += 1
        return self.answer


PATHS = Paths()


class Measured:
    """A trial whose answer the test says."""

    def __init__(self) -> None:
        self.is_sharing_faster = True
        self.count = 0

    def sharing_seconds(self, *_: Any, **__: Any) -> tuple[float, float]:
        self.count += 1
        return (1.0, 2.0) if self.is_sharing_faster else (2.0, 1.0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    measured = Measured()
    monkeypatch.setattr(trial, "sharing_seconds", measured.sharing_seconds)
    return measured


class Run:
    """Storage and broker of a run, as its learners see them one after the other."""

    def __init__(self, path: Path) -> None:
        self.files = open_decisions(path)
        self.path = path / "train"
        self.mirrored: bytes | None = None

    def learner(self, *, fence: int, state: TrainingState | None = None) -> DecisionLog:
        def mirror(content: bytes) -> None:
            # What the broker shows is on storage already.
            assert encode_decisions(self.files.newest() or Decisions()) == content
            self.mirrored = content

        return DecisionLog(
            find_decisions(self.files, mirrored=self.mirrored, state=state),
            files=self.files,
            fence=lambda: fence,
            mirror=mirror,
            stop=StopSignal(),
            retry_seconds=0.01,
        )

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.glob("*"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_restart_takes_what_was_decided_although_it_would_measure_otherwise(
    run: Run, measured: Measured
) -> None:
    first = run.learner(fence=1).begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    measured.is_sharing_faster = False
    # As where there was no memory for a moment to try the way that is right.
    num_tried = PATHS.count
    again = run.learner(fence=2)
    assert again.begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find) == first
    assert (measured.count, run.names) == (1, ["decisions-f0002-n0001.json"])
    assert first.share_prefixes
    assert first.path == {"attention": "eager", "alone_above": 0}
    assert PATHS.count == num_tried


def test_way_of_computing_is_tried_again_under_another_transformers(
    run: Run, measured: Measured, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    paths = Paths()

    def begin(fence: int, step: int) -> Any:
        return run.learner(fence=fence).begin(SETTINGS, step=step, num_ranks=1, find_path=paths.find)

    first = begin(1, 0)
    monkeypatch.setattr(f"{decide.__name__}.transformers.__version__", "99.0")
    assert begin(2, 3) == replace(first, transformers="99.0")
    paths.answer = FAST
    assert begin(3, 3).path == first.path
    assert (paths.count, [each for each in caplog.records if each.levelno >= logging.WARNING]) == (2, [])
    monkeypatch.setattr(f"{decide.__name__}.transformers.__version__", "99.1")
    assert begin(4, 5).path == asdict(FAST)
    assert "goes on in packed rows with shared prefixes, no longer bit for bit" in caplog.text
    # What was trained so far is trained again as it was; who followed the run does the same.
    assert [run.learner(fence=5).at(step)["path"] for step in (5, 6)] == [first.path, asdict(FAST)]


@pytest.mark.parametrize("left", ["storage", "broker"])
def test_what_is_lost_in_one_place_is_found_in_the_other_and_put_back(
    run: Run, measured: Measured, left: str
) -> None:
    run.learner(fence=1).begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    content = run.mirrored
    if left == "storage":
        run.mirrored = None
    else:
        (run.path / run.names[0]).unlink()
    measured.is_sharing_faster = False
    run.learner(fence=1).begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    assert (run.mirrored, measured.count) == (content, 1)
    assert encode_decisions(run.files.newest() or Decisions()) == content


def test_damaged_list_is_passed_over_for_the_copy_in_the_broker(
    run: Run, measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    run.learner(fence=1).begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    path = run.path / run.names[0]
    path.write_bytes(path.read_bytes().replace(b"float32", b"float16"))
    with pytest.raises(CorruptCheckpoint, match="does not match its own digest"):
        decode_decisions(path.read_bytes(), what="it")
    measured.is_sharing_faster = False
    assert run.learner(fence=2).begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find).share_prefixes
    assert "Decisions are passed over" in caplog.text


def test_run_of_the_release_before_goes_on_with_what_its_training_state_says(
    run: Run, measured: Measured
) -> None:
    decided = {
        **{"device": "cpu", "compute_dtype": "float32", "num_threads": 1, "num_ranks": 1},
        **{"share_prefixes": False, "attention": "blocks"},
        "row_limits": {"asked": [1024, 256], "used": [256, 256]},
    }
    state = TrainingState(step=3, fence=1, sequence=9, trained_ids=b"", decisions=decided)
    learner = run.learner(fence=2, state=state)
    assert not learner.begin(SETTINGS, step=3, num_ranks=1, find_path=PATHS.find).share_prefixes
    assert (measured.count, learner.row_limits(4)) == (0, (256, 256))
    # From here on the class of the processor is known as well.
    assert learner.at(3) == decided
    assert learner.at(4)["processor"]


def test_smaller_rows_hold_from_their_step_on_and_a_restart_from_before_it_repeats_that(run: Run) -> None:
    settings = SETTINGS.model_copy(update={"share_prefixes": "never", "token_budget": 100})
    first = run.learner(fence=1)
    first.begin(settings, step=0, num_ranks=1, find_path=PATHS.find)
    first.rows_made_smaller((50, 256), step=5)
    again = run.learner(fence=2)
    again.begin(settings, step=3, num_ranks=1, find_path=PATHS.find)
    assert [again.row_limits(step) for step in (1, 4, 5, 9)] == [(100, 256)] * 2 + [(50, 256)] * 2
    # This one has less memory, and meets it earlier.
    again.rows_made_smaller((25, 256), step=4)
    last = run.learner(fence=3)
    last.begin(settings, step=3, num_ranks=1, find_path=PATHS.find)
    assert [last.row_limits(step) for step in (3, 4, 5)] == [(100, 256), (25, 256), (25, 256)]


def test_what_settings_ask_for_anew_is_one_more_entry(
    run: Run, measured: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    run.learner(fence=1).begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    asked = SETTINGS.model_copy(update={"token_budget": 64, "share_prefixes": "never"})
    learner = run.learner(fence=2)
    assert not learner.begin(asked, step=7, num_ranks=2, find_path=PATHS.find).share_prefixes
    assert [learner.row_limits(step)[0] for step in (7, 8)] == [SETTINGS.token_budget, 64]
    said = "token_budget 1024 and head_chunk_rows 256 so far and goes on with 64 and 256"
    assert caplog.text.count(said) == 1
    newest = run.files.newest()
    assert newest is not None
    assert [entry.from_step for entry in newest.entries] == [1, 8]
    # Who comes back from before that step chooses for itself, and for what follows.
    back = run.learner(fence=3)
    assert back.begin(SETTINGS, step=2, num_ranks=1, find_path=PATHS.find).share_prefixes
    assert back.at(9) == back.at(3) == run.learner(fence=4).at(1)
    assert measured.count == 1


def test_learner_that_lost_the_run_changes_nothing(run: Run, measured: Measured) -> None:
    zombie = run.learner(fence=1)
    zombie.begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    owner = run.learner(fence=2)
    owner.begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    with pytest.raises(Fenced, match="higher fence"):
        zombie.rows_made_smaller((1, 16), step=1)
    # One that looked before the owner sealed, and writes after it.
    late = Decisions(fence=1, entries=(Decision(from_step=1, decided={}),) * 3)
    (run.path / "decisions-f0001-n0003.json").write_bytes(encode_decisions(late))
    assert run.learner(fence=3).at(1) == owner.at(1)
    assert run.files.highest_fence() == 2


def test_decision_waits_for_storage(run: Run, measured: Measured, caplog: pytest.LogCaptureFixture) -> None:
    failures = [PublishFailed("the disk is full")] * 2
    seal = run.files.seal

    def fails_twice(decisions: Decisions) -> None:
        if failures:
            raise failures.pop()
        seal(decisions)

    run.files.seal = fails_twice  # type: ignore[method-assign]
    run.learner(fence=1).begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    assert caplog.text.count("the disk is full; the next attempt is in") == 2
    assert run.mirrored is not None


def test_newer_form_is_refused_by_name() -> None:
    newer = encode_decisions(replace(Decisions(), schema_version=99))
    with pytest.raises(UnknownVersion, match="a newer release wrote it"):
        decode_decisions(newer, what="it")
    document = json.loads(encode_decisions(Decisions(fence=3)))
    assert (document["fence"], document["entries"]) == (3, [])


def test_torn_write_leaves_the_list_before_it(run: Run, measured: Measured) -> None:
    run.learner(fence=1).begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    (run.path / ".tmp-f0001-0123456789abcdef").write_bytes(b'{"half"')
    learner = run.learner(fence=2)
    learner.begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    assert run.names == ["decisions-f0002-n0001.json"]


def test_refused_class_of_processor_writes_nothing(run: Run, measured: Measured) -> None:
    run.learner(fence=1).begin(SETTINGS, step=0, num_ranks=1, find_path=PATHS.find)
    newest = run.files.newest()
    assert newest is not None
    elsewhere = {**newest.at(1), "processor": "x86_64 Other AVX2"}
    run.files.seal(Decisions(fence=2, entries=(Decision(from_step=1, decided=elsewhere),)))
    run.mirrored = None
    with pytest.raises(BadSetting, match="give --decide-anew"):
        run.learner(fence=3).begin(SETTINGS, step=4, num_ranks=1, find_path=PATHS.find)
    assert run.names == ["decisions-f0002-n0001.json"]
    learner = run.learner(fence=3)
    learner.begin(
        SETTINGS.model_copy(update={"decide_anew": True}), step=4, num_ranks=1, find_path=PATHS.find
    )
    assert (learner.at(4)["processor"], learner.at(5)) == ("x86_64 Other AVX2", newest.at(1))
