"""The auditor finds what was lost, doubled or never answered in records made by hand."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from asympo.chaos.auditor import Audit, audit
from asympo.chaos.evidence import Acknowledged, Archived, Rollback, TrainedSegment, read_journal, read_trained

NUM_PROMPTS, NUM_EPOCHS = 3, 2
GROUP_IDS = [f"{epoch}-{index}" for epoch in range(NUM_EPOCHS) for index in range(NUM_PROMPTS)]


def digest(group_id: str) -> str:
    return hashlib.sha256(group_id.encode()).hexdigest()


def acknowledged(group_id: str, sequence: int, *, at_seconds: float = 100.0) -> Acknowledged:
    return Acknowledged(
        group_id=group_id,
        sequence=sequence,
        digest=digest(group_id),
        producer="generator-0",
        at_seconds=at_seconds,
    )


def archived(group_id: str, sequence: int, *, outcome: str = "trained") -> Archived:
    return Archived(
        sequence=sequence,
        step=(sequence + 1) // 2,
        group_id=group_id,
        producer="generator-0",
        digest=digest(group_id),
        outcome=outcome,
    )


def segment(step: int, first: int, *group_ids: str) -> TrainedSegment:
    return TrainedSegment(
        step=step, first_sequence=first, last_sequence=first + len(group_ids) - 1, group_ids=group_ids
    )


@dataclasses.dataclass(kw_only=True)
class Records:
    """Of a run of six groups, two a step, in which all went well."""

    journal: list[Acknowledged]
    trained: list[TrainedSegment]
    archive: list[Archived]
    rollbacks: Sequence[Rollback] = ()

    def audited(self) -> Audit:
        return audit(
            acknowledged={"generator-0": self.journal},
            trained=self.trained,
            archived=self.archive,
            rollbacks=self.rollbacks,
            num_prompts=NUM_PROMPTS,
            num_epochs=NUM_EPOCHS,
        )


@pytest.fixture
def records() -> Records:
    numbered = list(enumerate(GROUP_IDS, start=1))
    return Records(
        journal=[acknowledged(group_id, sequence) for sequence, group_id in numbered],
        trained=[segment(step, 2 * step - 1, *GROUP_IDS[2 * step - 2 : 2 * step]) for step in (1, 2, 3)],
        archive=[archived(group_id, sequence) for sequence, group_id in numbered],
    )


def test_auditor_has_nothing_to_say_of_a_good_run(records: Records) -> None:
    found = records.audited()
    assert found.is_clean
    assert (found.prompts_answered, found.groups_appended, found.groups_trained) == (6, 6, 6)


def test_auditor_finds_an_acknowledged_group_that_was_never_consumed(records: Records) -> None:
    records.archive = [row for row in records.archive if row.group_id != "1-0"]
    records.trained[1] = dataclasses.replace(records.trained[1], group_ids=("0-2",))
    found = records.audited()
    assert not found.is_clean
    assert len(found.lost) == 1
    assert "group 1-0, acknowledged to generator-0 as entry 4 (line 4 of generator-0.jsonl)" in found.lost[0]
    assert found.unanswered == ("prompt 1-0 was never answered",)
    assert found.prompts_answered == 5


def test_auditor_finds_a_group_that_was_trained_twice(records: Records) -> None:
    records.archive.append(archived("0-1", 7))
    records.trained.append(segment(4, 7, "0-1"))
    found = records.audited()
    assert len(found.trained_twice) == 2  # once in each record
    assert "group 0-1 was trained 2 times: entries 2, 7" in found.trained_twice[0]
    assert found.prompts_answered == 5


def test_auditor_finds_a_double_that_only_the_learners_own_record_has(records: Records) -> None:
    records.trained.append(segment(4, 7, "0-1"))
    assert any("0-1" in text for text in records.audited().trained_twice)


def test_auditor_does_not_call_a_record_doubled_that_was_set_aside(records: Records) -> None:
    records.archive.append(archived("0-1", 7, outcome="dead_letter"))
    records.trained.append(segment(4, 7, "0-1"))
    assert records.audited().is_clean


def test_auditor_finds_another_payload_under_the_same_number(records: Records) -> None:
    records.journal[2] = dataclasses.replace(records.journal[2], digest=digest("something else"))
    found = records.audited()
    assert len(found.lost) == 1
    assert "although its prompt was answered by another" in found.lost[0]


@pytest.mark.parametrize(
    ("held_sequence", "settled_at_seconds", "is_excused"),
    [(4, 101.0, True), (6, 101.0, False), (4, 90.0, False)],
    ids=["taken back", "older log held it", "acknowledged after all was right again"],
)
def test_auditor_excuses_only_what_a_rollback_took_back(
    records: Records, held_sequence: int, settled_at_seconds: float, is_excused: bool
) -> None:
    records.journal.append(dataclasses.replace(acknowledged("1-1", 5), digest=digest("an earlier answer")))
    records.rollbacks = [
        Rollback(held_sequence=held_sequence, lost_up_to=8, settled_at_seconds=settled_at_seconds)
    ]
    found = records.audited()
    assert found.is_clean is is_excused
    assert found.taken_back == int(is_excused)


def test_auditor_does_not_excuse_a_rollback_whose_prompt_was_not_answered_again(records: Records) -> None:
    records.archive = [row for row in records.archive if row.group_id != "1-2"]
    records.rollbacks = [Rollback(held_sequence=4, lost_up_to=8, settled_at_seconds=200.0)]
    assert len(records.audited().lost) == 1


def test_auditor_finds_records_that_contradict_each_other(records: Records) -> None:
    records.trained.pop()
    assert len(records.audited().contradictions) == 2
    records.archive[0] = archived("0-0", 2)
    assert any(text == "entry 2 is in the archive 2 times" for text in records.audited().contradictions)


def test_auditor_finds_a_group_of_no_prompt(records: Records) -> None:
    records.archive.append(archived("9-9", 7))
    records.trained.append(segment(4, 7, "9-9"))
    assert "group 9-9 belongs to no prompt of the run" in records.audited().contradictions


def write_rows(path: Path, rows: Sequence[dict[str, Any]], *, torn: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    return path


def test_trained_lines_void_what_a_successor_consumed_again(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "fence": 1, "first_sequence": 1, "last_sequence": 2, "group_ids": ["a", "b"]},
        {"step": 2, "fence": 1, "first_sequence": 3, "last_sequence": 4, "group_ids": ["c", "d"]},
        {"step": None, "fence": 1, "first_sequence": 5, "last_sequence": 5, "group_ids": ["e"]},
        {"step": 2, "fence": 2, "first_sequence": 3, "last_sequence": 5, "group_ids": ["c", "x", "y"]},
        {"step": 3, "fence": 1, "first_sequence": 3, "last_sequence": 5, "group_ids": ["c", "d", "e"]},
    ]
    kept = read_trained(write_rows(tmp_path / "trained.jsonl", rows, torn='{"step": 3, "fen'))
    assert [each.group_ids for each in kept] == [("a", "b"), ("c", "x", "y")]


def test_journal_is_read_as_generators_write_it(tmp_path: Path) -> None:
    row = {
        "group_id": "0-1",
        "sequence": 7,
        "outcome": "duplicate",
        "payload_sha256": digest("0-1"),
        "producer": "generator-0",
        "at_seconds": 100.0,
    }
    path = write_rows(tmp_path / "generator-0.jsonl", [row])
    assert read_journal(path) == [acknowledged("0-1", 7)]
