"""The archive, then the log, each group once: as `asympo log export` and a second learner read them."""

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from asympo.cli import main
from asympo.common.archive import ArchivedEntry, EntryOutcome, PartInfo, PartRef, open_archive
from asympo.common.checkpoints.manifest import STATE_FORMAT, sealed_json
from asympo.common.errors import BadSetting, SequenceGap
from asympo.common.rollout_log import LogEntry, RunLog
from asympo.learner.progress import Progress
from asympo.learner.replay.second_learner import FollowedLog

from tests.integration.rollout_log.conftest import must_append, start_run


def archive(log: RunLog, root: Path, entries: list[LogEntry], parent: PartRef | None = None) -> PartRef:
    """What a learner leaves when it saves after these entries, the first ones or those after `parent`."""
    rows = [
        ArchivedEntry(
            sequence=entry.sequence,
            segment_end=entries[-1].sequence,
            step=1,
            outcome=EntryOutcome.TRAINED,
            reason="",
            group_id=entry.group_id,
            producer=entry.producer,
            entry_id=entry.entry_id,
            appended_at_seconds=entry.appended_at_seconds,
            payload=entry.payload,
        )
        for entry in entries
    ]
    last = entries[-1].sequence
    first = parent.last + 1 if parent else 1
    info = PartInfo(
        run=log.run, fence=1, first=first, last=last, step_before=0, step=1, lost=(), parent=parent
    )
    tip = open_archive(root / log.run).write([(row, None) for row in rows], info)
    state = root / log.run / "train" / f"step-00000001-f0001-n{last:012d}"
    state.mkdir(parents=True)
    document = {
        STATE_FORMAT.name: STATE_FORMAT.newest,
        **{"step": 1, "fence": 1, "sequence": last, "files": []},
        "archive": dataclasses.asdict(tip),
    }
    (state / "manifest.json").write_bytes(sealed_json(document))
    return tip


@pytest.mark.parametrize("is_trimmed", [True, False])
def test_export_has_archive_and_log_without_overlap(
    log: RunLog, tmp_path: Path, is_trimmed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = start_run(log, groups_per_step=8, max_groups_per_step=8)
    for _ in range(5):
        must_append(log)
    entries = list(learner.consume(3))
    archive(log, tmp_path, entries)
    if is_trimmed:
        learner.commit([entry.group_id for entry in entries])
    flags = ["--run", log.run, "--checkpoint-root", str(tmp_path), "--redis-url", log.broker.url]
    assert main(["log", "export", *flags, "--out", str(tmp_path / "all.parquet"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"] == 5
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert [row["sequence"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["outcome"] for row in rows] == ["trained"] * 3 + ["backlog"] * 2
    assert [row["payload"] for row in rows[:3]] == [entry.payload for entry in entries]
    assert main(["log", "export", *flags, "--out", str(tmp_path / "all.jsonl")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [base64.b64decode(line["payload"]) for line in lines] == [row["payload"] for row in rows]


def test_export_refuses_a_gap_between_archive_and_log(log: RunLog, tmp_path: Path) -> None:
    learner = start_run(log, groups_per_step=8, max_groups_per_step=8)
    for _ in range(4):
        must_append(log)
    entries = list(learner.consume(3))
    archive(log, tmp_path, entries[:1])
    learner.commit([entry.group_id for entry in entries])
    flags = ["--run", log.run, "--checkpoint-root", str(tmp_path), "--redis-url", log.broker.url]
    assert main(["log", "export", *flags, "--out", str(tmp_path / "all.parquet")]) == 5
    assert main(["log", "export", *flags, "--out", str(tmp_path / "all.parquet"), "--archive-only"]) == 0
    assert pq.read_table(tmp_path / "all.parquet").num_rows == 1


def test_export_of_nothing_is_refused(tmp_path: Path) -> None:
    from asympo.common.archive.export import export

    with pytest.raises(BadSetting, match="nothing to export"):
        export(open_archive(tmp_path / "r"), tmp_path / "x.parquet", read_backlog=None)
    with pytest.raises(BadSetting, match=r"neither \.parquet nor \.jsonl"):
        export(open_archive(tmp_path / "r"), tmp_path / "x.csv", read_backlog=None)


@pytest.mark.parametrize("is_archived", [True, False])
def test_entries_committed_just_before_the_log_is_read_come_from_the_archive(
    log: RunLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_archived: bool
) -> None:
    learner = start_run(log, groups_per_step=8, max_groups_per_step=8)
    for _ in range(4):
        must_append(log)
    entries = list(learner.consume(3))
    read = log.reader.read

    def commit_and_read(**options: Any) -> Any:
        if log.commits.last() is None:
            if is_archived:
                archive(log, tmp_path, entries)
            learner.commit([entry.group_id for entry in entries])
        return read(**options)

    monkeypatch.setattr(log.reader, "read", commit_and_read)
    followed = FollowedLog(run_log=log, archive=open_archive(tmp_path / log.run), progress=Progress())
    if is_archived:
        found = followed.read(after_sequence=0, max_count=10, block_seconds=0.0)
        assert [entry.sequence for entry in found] == [1, 2, 3]
        [last] = followed.read(after_sequence=3, max_count=10, block_seconds=0.0)
        assert last.sequence == 4
    else:
        with pytest.raises(SequenceGap, match="from entry 0 to 4, 3 missing"):
            followed.read(after_sequence=0, max_count=10, block_seconds=0.0)


def test_archive_that_has_grown_since_it_was_opened_is_read_on(log: RunLog, tmp_path: Path) -> None:
    learner = start_run(log, groups_per_step=8, max_groups_per_step=8)
    followed = FollowedLog(run_log=log, archive=open_archive(tmp_path / log.run), progress=Progress())
    tip = None
    for last in (2, 4):
        for _ in range(2):
            must_append(log)
        entries = list(learner.consume(2))
        tip = archive(log, tmp_path, entries, parent=tip)
        learner.commit([entry.group_id for entry in entries])
        found = followed.read(after_sequence=last - 2, max_count=10, block_seconds=0.0)
        assert [entry.sequence for entry in found] == [last - 1, last]
