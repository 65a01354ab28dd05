"""`asympo log export`: the archive, then the log, each group once, readable elsewhere."""

import base64
import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from asympo.cli import main
from asympo.common.archive import ArchivedEntry, EntryOutcome, PartInfo, PartRef, open_archive
from asympo.common.checkpoints.manifest import STATE_FORMAT, sealed_json
from asympo.common.errors import BadSetting
from asympo.common.rollout_log import LogEntry, RunLog

from tests.integration.rollout_log.conftest import must_append, start_run


def archive(log: RunLog, root: Path, entries: list[LogEntry]) -> PartRef:
    """What a learner leaves when it saves after these entries."""
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
    info = PartInfo(run=log.run, fence=1, first=1, last=last, step_before=0, step=1, lost=(), parent=None)
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
