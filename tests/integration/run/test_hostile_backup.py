"""A backup that somebody made up writes nothing outside of its run's directory, and takes nothing away."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import AsympoError, BadSetting
from asympo.local.broker import LocalBroker
from asympo.ops import restore
from asympo.ops.backup_files import seal

LINE = {"noun": "config", "kind": "string", "place": 0, "items": ["e30="]}


def make_backup(path: Path, *, run: str, lines: list[Any], files: dict[str, bytes] | None = None) -> Path:
    path.mkdir()
    written = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    (path / "broker.jsonl").write_bytes(b"".join(line + b"\n" for line in written))
    for name, content in (files or {}).items():
        (path / "storage" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "storage" / name).write_bytes(content)
    seal(
        path,
        release="0",
        run=run,
        at_seconds=0.0,
        state_name=None,
        policy_name=None,
        committed_sequence=0,
        last_sequence=0,
        num_leases=0,
    )
    return path


def run_restore(backup: Path, broker: LocalBroker, root: Path) -> None:
    restore.main([str(backup), "--redis-url", broker.url, "--checkpoint-root", str(root)])


def snapshot(path: Path) -> dict[str, str]:
    files = (each for each in path.rglob("*") if each.is_file())
    return {str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}


@pytest.mark.parametrize("run", ["..", ".", "../x", "/tmp/x", "a/b", "", "x\n", "x\0", "é", "a" * 300])
def test_restore_refuses_a_run_that_is_no_name(tmp_path: Path, own_broker: LocalBroker, run: str) -> None:
    root = tmp_path / "area" / "root"
    root.mkdir(parents=True)
    backup = make_backup(tmp_path / "backup", run=run, lines=[LINE], files={"a.toml": b"x"})
    before = snapshot(tmp_path / "area")
    with pytest.raises(AsympoError, match="not a valid name"):
        run_restore(backup, own_broker, root)
    assert snapshot(tmp_path / "area") == before


def test_restore_that_fails_takes_back_its_own_files_only(tmp_path: Path, own_broker: LocalBroker) -> None:
    mine = tmp_path / "root" / "r"
    (mine / "notes").mkdir(parents=True)
    (mine / "b.toml").write_text("mine")
    before = snapshot(tmp_path / "root")
    for number, files in enumerate(
        ({"a.toml": b"x", "b.toml": b"y"}, {"a.toml": b"x", "notes/a.toml": b"y"})
    ):
        backup = make_backup(tmp_path / f"backup-{number}", run="r", lines=[LINE], files=files)
        with pytest.raises(AsympoError, match="exists"):
            run_restore(backup, own_broker, tmp_path / "root")
        assert snapshot(tmp_path / "root") == before
        assert (mine / "notes").is_dir()


@pytest.mark.parametrize("name", ["_a.toml", ".a.toml", "a..toml", "a b.toml", "a/b/c/d.toml"])
def test_backup_with_a_file_that_no_restore_takes_is_not_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadSetting, match=f"cannot be in a backup.*{re.escape(name)}"):
        make_backup(tmp_path / "backup", run="r", lines=[LINE], files={name: b"x"})
    assert not (tmp_path / "backup" / "manifest.json").exists()


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"{",
            b"[]",
            b"null",
            b"[" * 100_000,
            b'{"a": ' + b"9" * 5000 + b"}",
            b"\x00",
            b"\xff\xfe\x80",
            b'{"noun": "config", "kind": "string", "pla',
            b'{"noun": "config", "kind": "string", "items": ["e30="], "place": NaN}',
            b'{"noun": "config", "kind": "string", "items": ["e30="], "place": ' + b"9" * 5000 + b"}",
            b'{"noun": "config", "kind": "string", "place": 0, "items": '
            + b"[" * 50_000
            + b"]" * 50_000
            + b"}",
        ),
        {**LINE, "place": 10**30},
        {**LINE, "place": -1},
        {**LINE, "place": True},
        {**LINE, "items": []},
        {**LINE, "items": ["YQ==", "YQ=="]},
        {**LINE, "kind": "hash", "noun": "run"},
        {**LINE, "kind": "stream", "noun": "log"},
        {**LINE, "kind": "stream", "noun": "log", "items": ["YQ==", "YQ==", "YQ=="]},
        {**LINE, "kind": "zset", "noun": "deadlines", "items": ["YQ==", "YQ=="]},
        {**LINE, "kind": "zset", "noun": "run", "items": ["YQ==", "MQ=="]},
        {**LINE, "noun": "config}:x"},
        {**LINE, "noun": ["config"]},
        {**LINE, "kind": "module"},
        {**LINE, "kind": ["string"]},
        {**LINE, "place": "0"},
        {**LINE, "items": ["%"]},
        {**LINE, "items": 5},
        {"noun": "config"},
    ],
)
def test_restore_says_which_line_of_the_brokers_keys_is_damaged(
    tmp_path: Path, own_broker: LocalBroker, line: Any
) -> None:
    backup = make_backup(tmp_path / "backup", run="r", lines=[LINE, line], files={"a.toml": b"x"})
    with pytest.raises(AsympoError, match="line 2 of"):
        run_restore(backup, own_broker, tmp_path / "root")
    assert snapshot(tmp_path / "root") == {}
