"""The archive on storage: what a state names is read back exactly, and nothing else is."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from asympo.common.archive import (
    ArchivedEntry,
    ArchiveStore,
    EntryOutcome,
    PartInfo,
    PartRef,
    ReadableGroup,
    ReadableResponse,
    open_archive,
)
from asympo.common.checkpoints.manifest import sealed_json
from asympo.common.errors import CorruptArchive, PublishFailed, SequenceGap

GROUP = ReadableGroup(
    prompt_text="What?",
    prompt_token_ids=(1, 2),
    responses=(
        ReadableResponse(
            text="That.",
            token_ids=(3, 4),
            reward=1.0,
            advantage=0.5,
            finish_reason="stop",
            trained_token_mask=None,
        ),
    ),
)


def entry(
    sequence: int, *, group_id: str = "", outcome: EntryOutcome = EntryOutcome.TRAINED
) -> ArchivedEntry:
    return ArchivedEntry(
        sequence=sequence,
        segment_end=sequence,
        step=None if outcome is EntryOutcome.WITHOUT_SIGNAL else sequence,
        outcome=outcome,
        reason="no record" if outcome is EntryOutcome.DEAD_LETTER else "",
        group_id=group_id or f"0-{sequence}",
        producer="test",
        entry_id=f"{sequence}-0",
        appended_at_seconds=sequence / 3,
        payload=bytes([0, 255, sequence]),
    )


def write(
    store: ArchiveStore,
    sequences: Sequence[int],
    *,
    parent: PartRef | None,
    fence: int = 1,
    last: int | None = None,
    lost: tuple[tuple[int, int], ...] = (),
    group_id: str = "",
) -> PartRef:
    first = parent.last + 1 if parent else 1
    last = sequences[-1] if last is None else last
    info = PartInfo(
        run="r",
        fence=fence,
        first=first,
        last=last,
        step_before=first - 1,
        step=last,
        lost=lost,
        parent=parent,
    )
    return store.write([(entry(s, group_id=group_id and f"{group_id}-{s}"), GROUP) for s in sequences], info)


def save_state(run: Path, tip: PartRef | None, *, fence: int = 1) -> Path:
    """A training state as far as readers of the archive look at it."""
    sequence = tip.last if tip else 0
    path = run / "train" / f"step-{sequence:08d}-f{fence:04d}-n{sequence:012d}"
    path.mkdir(parents=True)
    document = {
        "schema_version": 1,
        **{"step": sequence, "fence": fence, "sequence": sequence, "files": []},
        "archive": None if tip is None else dataclasses.asdict(tip),
    }
    (path / "manifest.json").write_bytes(sealed_json(document))
    return path


@pytest.fixture
def store(tmp_path: Path) -> ArchiveStore:
    return open_archive(tmp_path)


def test_archive_gives_back_every_byte_in_order(store: ArchiveStore, tmp_path: Path) -> None:
    tip = write(store, [4, 5], parent=write(store, [1, 2, 3], parent=None))
    save_state(tmp_path, tip)
    assert list(store.entries()) == [entry(number) for number in range(1, 6)]
    assert [read.sequence for read in store.entries(after_sequence=2)] == [3, 4, 5]


def test_archive_is_readable_with_pyarrow(store: ArchiveStore) -> None:
    import pyarrow.parquet as pq

    part = write(store, [1, 2], parent=None)
    assert part.name.startswith("seq-000000000001-000000000002-f0001-")
    rows = pq.read_table(store.path / part.name).to_pylist()
    assert rows[0]["prompt_text"] == "What?"
    assert rows[1]["responses"] == [
        {
            "text": "That.",
            "token_ids": [3, 4],
            "reward": 1.0,
            "advantage": 0.5,
            "finish_reason": "stop",
            "trained_token_mask": None,
        }
    ]


def test_numbers_the_broker_lost_are_no_gap(store: ArchiveStore, tmp_path: Path) -> None:
    first = write(store, [1, 2], parent=None)
    save_state(tmp_path, write(store, [6, 8], parent=first, last=9, lost=((3, 5), (7, 7), (9, 9))))
    assert [read.sequence for read in store.entries()] == [1, 2, 6, 8]


def test_missing_number_is_refused_by_name(store: ArchiveStore, tmp_path: Path) -> None:
    part = write(store, [1, 3], parent=None)
    save_state(tmp_path, part)
    with pytest.raises(SequenceGap, match=f"{part.name} goes from 1 to 3"):
        list(store.entries())


def test_time_without_retain_is_refused_by_name(store: ArchiveStore, tmp_path: Path) -> None:
    first = write(store, [1], parent=None)
    info = PartInfo(run="r", fence=1, first=5, last=5, step_before=4, step=5, lost=(), parent=first)
    save_state(tmp_path, store.write([(entry(5), None)], info))
    with pytest.raises(SequenceGap, match="lacks groups 2 to 4"):
        list(store.entries())
    assert [read.sequence for read in store.entries(after_sequence=4)] == [5]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_part_is_refused_by_name(store: ArchiveStore, tmp_path: Path, damage: str) -> None:
    first = write(store, [1, 2], parent=None)
    save_state(tmp_path, write(store, [3], parent=first))
    path = store.path / first.name
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-20])
    with pytest.raises(CorruptArchive, match=first.name):
        list(store.entries())


def test_part_that_no_state_names_is_not_in_the_archive(store: ArchiveStore, tmp_path: Path) -> None:
    base = write(store, [1, 2], parent=None)
    save_state(tmp_path, base)
    write(store, [3, 4], parent=base, group_id="dead")
    assert [read.sequence for read in store.entries()] == [1, 2]
    mine = write(store, [3, 4], parent=base, fence=2, group_id="mine")
    save_state(tmp_path, mine, fence=2)
    assert [read.group_id for read in store.entries()] == ["0-1", "0-2", "mine-3", "mine-4"]


def test_superseded_learner_that_writes_late_changes_nothing(store: ArchiveStore, tmp_path: Path) -> None:
    base = write(store, [1], parent=None)
    mine = write(store, [2, 3], parent=base, fence=2, group_id="mine")
    save_state(tmp_path, mine, fence=2)
    zombie = write(store, [2, 3], parent=base, fence=1, group_id="zombie")
    save_state(tmp_path, zombie, fence=1)
    assert [read.group_id for read in store.entries()] == ["0-1", "mine-2", "mine-3"]


def test_sweep_deletes_what_is_beyond_the_loaded_state_and_spares_newer_owners(
    store: ArchiveStore, tmp_path: Path
) -> None:
    base = write(store, [1], parent=None)
    dead = write(store, [2], parent=base, fence=1, group_id="dead")
    mine = write(store, [2, 3], parent=base, fence=2, group_id="mine")
    newer = write(store, [2], parent=base, fence=3, group_id="newer")
    torn = store.path / ".tmp-f0001-0123456789abcdef"
    torn.write_bytes(b"PAR1")
    assert sorted(store.sweep(after_sequence=1, fence=2, kept={mine.name})) == sorted([dead.name, torn.name])
    assert {path.name for path in store.path.iterdir()} == {base.name, mine.name, newer.name}
    assert store.highest_fence() == 3


def test_newest_state_that_verifies_decides(store: ArchiveStore, tmp_path: Path) -> None:
    first = write(store, [1], parent=None)
    save_state(tmp_path, first)
    second = write(store, [2], parent=first)
    torn = save_state(tmp_path, second)
    assert store.newest_tip() == second
    (torn / "manifest.json").write_bytes((torn / "manifest.json").read_bytes()[:-9])
    assert store.newest_tip() == first


def test_run_without_archive_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, None)
    with pytest.raises(CorruptArchive, match="must run with retain"):
        list(open_archive(tmp_path).entries())


def test_failed_write_leaves_nothing(store: ArchiveStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    store.path.mkdir()
    with pytest.raises(PublishFailed, match="archive of groups 1 to 1 does not fit"):
        write(store, [1], parent=None)
    assert list(store.path.iterdir()) == []
