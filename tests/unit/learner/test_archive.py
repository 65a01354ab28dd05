"""What the learner hands to the archive, and what becomes of parts whose state was never saved."""

import errno
from pathlib import Path
from typing import Any

import pytest
from asympo.common.archive import EntryOutcome, PartRef, open_archive
from asympo.common.checkpoints.files import DirectoryFiles
from asympo.common.codec import encode_group
from asympo.common.errors import PublishFailed
from asympo.common.records import FinishReason, Prompt, Response, RolloutGroup, group_advantages
from asympo.common.rollout_log import LogEntry
from asympo.learner.log.segment import LogSegment, ReadGroup
from asympo.learner.state.archive import Archive

LIMITS = (1024, 256)


def segment(*sequences: int, dead: int | None = None, equal: int | None = None) -> LogSegment:
    entries, groups = [], []
    for sequence in sequences:
        rewards = (1.0, 1.0) if sequence == equal else (1.0, 0.0)
        responses = tuple(
            Response(text="ab", reward=reward, finish_reason=FinishReason.STOP) for reward in rewards
        )
        record = RolloutGroup(group_id=f"0-{sequence}", prompt=Prompt(text="a?"), responses=responses)
        entry = LogEntry(
            sequence=sequence,
            group_id=record.group_id,
            producer="test",
            payload=encode_group(record),
            entry_id=f"{sequence}-0",
            appended_at_seconds=1.5,
        )
        entries.append(entry)
        if sequence != dead:
            group = ReadGroup(
                record=record,
                sequence=sequence,
                producer="test",
                appended_at_seconds=1.5,
                prompt_ids=(7,),
                response_ids=((8, 9),) * 2,
                advantages=group_advantages(rewards),
            )
            groups.append(group)
    return LogSegment(
        first_sequence=sequences[0],
        last_sequence=sequences[-1],
        groups=tuple(groups),
        entries=tuple(entries),
        reasons={} if dead is None else {dead: "bad record"},
    )


def archive(tmp_path: Path, *, is_on: bool = True, tip: PartRef | None = None, sequence: int = 0) -> Archive:
    return Archive(
        store=open_archive(tmp_path), is_on=is_on, run="r", recipe={}, tip=tip, sequence=sequence, step=0
    )


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "archive").glob("*"))


def refused(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EIO, "Input/output error")


def saved(ours: Archive, consumed: LogSegment, *, step: int) -> str:
    """Name of the part that goes with the training state of a step."""
    ours.consumed(consumed, step=step, row_limits=LIMITS)
    part = ours.write(fence=2, sequence=consumed.last_sequence, step=step)
    ours.made_durable(part, fence=2)
    assert part.tip is not None
    return part.tip.name


def test_archive_has_every_consumed_entry_with_what_was_done(tmp_path: Path) -> None:
    ours = archive(tmp_path)
    ours.consumed(segment(1, 2, 3, dead=2, equal=3), step=1, row_limits=LIMITS)
    ours.consumed(segment(6, equal=6), step=None, row_limits=LIMITS)
    part = ours.write(fence=1, sequence=6, step=1)
    (link,) = open_archive(tmp_path).chain(part.tip)
    rows = list(open_archive(tmp_path).read(link))
    assert [(row.sequence, row.segment_end, row.step, row.outcome, row.reason) for row in rows] == [
        (1, 3, 1, EntryOutcome.TRAINED, ""),
        (2, 3, 1, EntryOutcome.DEAD_LETTER, "bad record"),
        (3, 3, 1, EntryOutcome.WITHOUT_SIGNAL, ""),
        (6, 6, None, EntryOutcome.WITHOUT_SIGNAL, ""),
    ]
    assert link.info.lost == ((4, 5),)
    assert (link.info.first, link.info.last, link.info.step_before, link.info.step) == (1, 6, 0, 1)


def test_part_without_its_state_is_written_again_with_what_came_since(tmp_path: Path) -> None:
    ours = archive(tmp_path)
    ours.consumed(segment(1), step=1, row_limits=LIMITS)
    ours.write(fence=1, sequence=1, step=1)
    ours.consumed(segment(2), step=2, row_limits=LIMITS)
    part = ours.write(fence=1, sequence=2, step=2)
    ours.made_durable(part, fence=1)
    assert part.tip is not None
    assert (part.tip.first, part.tip.last) == (1, 2)
    assert names(tmp_path) == [part.tip.name]


def test_what_is_consumed_while_a_state_is_saved_goes_into_the_next_part(tmp_path: Path) -> None:
    ours = archive(tmp_path)
    ours.consumed(segment(1), step=1, row_limits=LIMITS)
    first = ours.write(fence=1, sequence=1, step=1)
    ours.consumed(segment(2), step=2, row_limits=LIMITS)
    ours.made_durable(first, fence=1)
    second = ours.write(fence=1, sequence=2, step=2)
    ours.made_durable(second, fence=1)
    assert second.tip is not None
    assert (second.tip.first, second.tip.last) == (2, 2)
    assert [link.ref for link in open_archive(tmp_path).chain(second.tip)] == [first.tip, second.tip]


def test_parts_of_a_dead_learner_go_once_a_state_of_ours_is_durable(tmp_path: Path) -> None:
    dead = archive(tmp_path)
    dead.consumed(segment(1), step=1, row_limits=LIMITS)
    dead.write(fence=1, sequence=1, step=1)
    ours = archive(tmp_path)
    ours.consumed(segment(1, 2), step=1, row_limits=LIMITS)
    part = ours.write(fence=2, sequence=2, step=1)
    assert len(names(tmp_path)) == 2
    ours.made_durable(part, fence=2)
    assert part.tip is not None
    assert names(tmp_path) == [part.tip.name]


def test_sweep_that_storage_refuses_does_not_fail_the_save_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = archive(tmp_path)
    dead.consumed(segment(1, 2), step=1, row_limits=LIMITS)
    dead.write(fence=1, sequence=2, step=1)
    ours = archive(tmp_path)
    kept = []
    with monkeypatch.context() as storage:
        storage.setattr(DirectoryFiles, "names", refused)
        kept.append(saved(ours, segment(1), step=1))
    kept.append(saved(ours, segment(2), step=2))
    assert names(tmp_path) == sorted(kept)


def test_archive_that_is_off_hands_the_tip_on(tmp_path: Path) -> None:
    ours = archive(tmp_path)
    ours.consumed(segment(1), step=1, row_limits=LIMITS)
    tip = ours.write(fence=1, sequence=1, step=1).tip
    off = archive(tmp_path, is_on=False, tip=tip, sequence=1)
    off.consumed(segment(2), step=2, row_limits=LIMITS)
    part = off.write(fence=2, sequence=2, step=2)
    off.made_durable(part, fence=2)
    assert part.tip == tip
    assert len(names(tmp_path)) == 1


def test_full_storage_is_a_failed_save(tmp_path: Path) -> None:
    (tmp_path / "archive").write_text("not a directory")
    ours = archive(tmp_path)
    ours.consumed(segment(1), step=1, row_limits=LIMITS)
    with pytest.raises(PublishFailed):
        ours.write(fence=1, sequence=1, step=1)


def test_part_says_from_which_step_on_rows_were_smaller(tmp_path: Path) -> None:
    ours = archive(tmp_path)
    for step, row_limits in enumerate([LIMITS, LIMITS, (512, 256), (512, 256), (512, 128)], start=1):
        ours.consumed(segment(step), step=step, row_limits=row_limits)
        if step == 2:
            first = ours.write(fence=1, sequence=2, step=2)
        if step == 3:
            ours.made_durable(first, fence=1)
    second = ours.write(fence=1, sequence=5, step=5)
    found = [part.info.row_limits for part in open_archive(tmp_path).chain(second.tip)]
    assert found == [((1, 1024, 256),), ((3, 512, 256), (5, 512, 128))]
