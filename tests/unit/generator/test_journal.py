"""The record of acknowledged appends: one line each, complete, for one process."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from asympo.common.errors import BadSetting
from asympo.common.jsonl import read_jsonl
from asympo.common.rollout_log import AppendOutcome, AppendResult, Lease
from asympo.common.rollout_log.broker.calls import Calls
from asympo.generator.work.group import GroupMaker
from asympo.generator.work.inflight import GroupInFlight, GroupStopped, StopReason
from asympo.generator.work.journal import AppendJournal


def lease(group_id: str) -> Lease:
    return Lease(group_id=group_id, epoch=0, index=1, token="t", expires_in_seconds=9.0, policy_step=0)


def appended(sequence: int) -> AppendResult:
    return AppendResult(
        outcome=AppendOutcome.APPENDED,
        sequence=sequence,
        generation_staleness=0,
        generation_staleness_steps=0,
    )


def test_journal_has_a_row_for_each_append(tmp_path: Path) -> None:
    journal = AppendJournal(tmp_path / "new" / "appends.jsonl")
    journal.record(lease("0-7"), b"payload", appended(3), producer="g")
    journal.close()
    (row,) = read_jsonl(tmp_path / "new" / "appends.jsonl")
    assert row.pop("at_seconds") > 1e9
    assert row == {
        "group_id": "0-7",
        "sequence": 3,
        "outcome": "appended",
        "payload_sha256": hashlib.sha256(b"payload").hexdigest(),
        "producer": "g",
    }


def test_journal_writes_a_row_later_when_storage_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "appends.jsonl"
    journal = AppendJournal(path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            journal.record(lease("0-1"), b"a", appended(1), producer="g")
    journal.record(lease("0-2"), b"b", appended(2), producer="g")
    journal.close()
    assert [row["group_id"] for row in read_jsonl(path)] == ["0-1", "0-2"]


def test_journal_of_a_killed_generator_is_taken_over_without_its_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "appends.jsonl"
    code = (
        "import os, sys, pathlib\n"
        "from asympo.generator.work.journal import AppendJournal\n"
        "journal = AppendJournal(pathlib.Path(sys.argv[1]))\n"
        'os.write(journal._held.fileno(), b\'{"group_id": "0-\')\n'
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    with pytest.raises(BadSetting, match="belongs to a running generator"):
        AppendJournal(path)
    process.kill()
    process.communicate()
    journal = AppendJournal(path)
    journal.record(lease("0-2"), b"b", appended(2), producer="g")
    journal.close()
    assert [json.loads(line)["group_id"] for line in path.read_text().splitlines()] == ["0-2"]


def test_append_whose_group_is_stopped_meanwhile_is_in_the_journal(tmp_path: Path) -> None:
    """A renewal that comes between an append and its answer finds the lease ended, and stops the group."""
    path, is_in_log, may_answer = tmp_path / "appends.jsonl", threading.Event(), threading.Event()

    def append(*_: Any, **__: Any) -> AppendResult:
        is_in_log.set()
        may_answer.wait()
        return appended(5)

    context: Any = MagicMock()
    context.calls = Calls(max_threads=2, on_broker_error=lambda: None)
    context.run_log.leases.append, context.holder = append, "g"
    journal = AppendJournal(path)
    parts: dict[str, Any] = dict.fromkeys(("sampling", "task", "scorer", "gate", "cache_salt"))
    maker = GroupMaker(context=context, journal=journal, **parts)

    async def stopped() -> None:
        group = GroupInFlight(lease=lease("0-5"), request_id="r", num_samples=4)
        appending = asyncio.ensure_future(maker._append(group, b"payload"))
        await context.calls.run(is_in_log.wait)
        group.stop(StopReason.LEASE_LOST)
        with pytest.raises(GroupStopped):
            await appending
        may_answer.set()
        while not list(read_jsonl(path)):
            await asyncio.sleep(0.01)

    asyncio.run(stopped())
    journal.close()
    assert [(row["group_id"], row["sequence"]) for row in read_jsonl(path)] == [("0-5", 5)]
