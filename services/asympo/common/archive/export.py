"""A run's groups as one file: those of the archive, and after them those that the log still holds."""

import base64
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asympo.common.archive.choice import Choice
from asympo.common.archive.parquet import read_table, table_of
from asympo.common.archive.readable import by_step, readable, write_tables
from asympo.common.archive.rows import ArchivedEntry, EntryOutcome, PartInfo, PartRef, ReadableGroup
from asympo.common.archive.store import ArchiveStore
from asympo.common.checkpoints import directory
from asympo.common.codec import WireLimits, decode_group
from asympo.common.errors import BadSetting, InvalidRecord, SequenceGap
from asympo.common.records import group_advantages
from asympo.common.rollout_log import LogEntry

_MAX_TRIES = 5
"""A learner may commit, and trim the log, between our look at the archive and at the log."""

_ALL = Choice()
ReadBacklog = Callable[[int | None], Sequence[LogEntry]]
"""Entries after a number, without gaps (SequenceGap); None asks for all that are there."""
StepOf = Callable[[int], int | None]
"""Step that the entry with this number was trained at, though no state covers it yet; None: at none."""
STEP = "{step}"
"""In the name of a file: one file for each step."""


def export(
    archive: ArchiveStore,
    out: Path,
    *,
    read_backlog: ReadBacklog | None,
    choice: Choice = _ALL,
    step_of: StepOf = lambda _: None,
) -> int:
    """Writes `out`, Parquet or JSON lines by its suffix, whole or not at all; returns the number of groups.

    Raises BadSetting when there is nothing to export or the suffix is another one, CorruptArchive and
    SequenceGap by name.
    """
    if out.suffix not in (".parquet", ".jsonl"):
        raise BadSetting(f"{out} is neither .parquet nor .jsonl")
    if STEP in str(out.parent):
        raise BadSetting(f"{out} has {STEP} in a folder's name: it belongs into the file's name")
    tip, backlog = _consistent(archive, read_backlog)
    if tip is None and not backlog:
        raise BadSetting(f"there is nothing to export: {archive.path} holds none of it and the log is empty")
    write = write_tables if out.suffix == ".parquet" else _write_lines
    tables = (readable(table, choice) for table in _tables(archive, tip, backlog, choice, step_of))
    if STEP not in out.name:
        with _replacing(out) as temporary:
            return write(temporary, tables)
    num_groups = 0
    for table in tables:
        # A part of the archive ends where a step ends: each step is whole in one table.
        for step, rows in by_step(table):
            with _replacing(out.with_name(out.name.replace(STEP, f"{step:08d}"))) as temporary:
                num_groups += write(temporary, [rows])
    return num_groups


def iter_groups(
    archive: ArchiveStore, *, read_backlog: ReadBacklog, choice: Choice, step_of: StepOf
) -> Iterator[ArchivedEntry]:
    """Entries of the steps that `choice` wants, oldest first; its other wishes are the caller's."""
    tip, backlog = _consistent(archive, read_backlog)
    for part in archive.chain(tip):
        if _may_have(part.info, choice):
            yield from (entry for entry in archive.read(part) if choice.takes_step(entry.step))
    for entry in backlog:
        step = step_of(entry.sequence)
        if choice.takes_step(step):
            yield ArchivedEntry.of(entry, outcome=EntryOutcome.BACKLOG, reason="", step=step)


def _may_have(info: PartInfo, choice: Choice) -> bool:
    """Whether a part has steps that are wanted, as far as its own words tell."""
    first, last = choice.first_step, choice.last_step
    return (first is None or info.step >= first) and (last is None or info.step_before < last)


def _consistent(
    archive: ArchiveStore, read_backlog: ReadBacklog | None
) -> tuple[PartRef | None, Sequence[LogEntry]]:
    for remaining in reversed(range(_MAX_TRIES)):
        tip = archive.newest_tip()
        if read_backlog is None:
            return tip, ()
        try:
            return tip, read_backlog(tip.last if tip else None)
        except SequenceGap:
            if not remaining or archive.newest_tip() == tip:
                raise
    raise AssertionError("the last try returns or raises")


def _tables(
    store: ArchiveStore, tip: PartRef | None, backlog: Sequence[LogEntry], choice: Choice, step_of: StepOf
) -> Iterator[Any]:
    cursor: int | None = None
    for part in store.chain(tip):
        if cursor is not None and part.info.first != cursor + 1:
            raise SequenceGap(f"the archive lacks groups {cursor + 1} to {part.info.first - 1}")
        cursor = part.info.last
        if not _may_have(part.info, choice):
            continue
        yield read_table(store.content(part.ref), what=store.path / part.ref.name)
    if backlog:
        yield table_of([_waiting(entry, step_of(entry.sequence)) for entry in backlog])


def _waiting(entry: LogEntry, step: int | None) -> tuple[ArchivedEntry, ReadableGroup | None]:
    group: ReadableGroup | None = None
    reason = ""
    try:
        record = decode_group(entry.payload, limits=WireLimits())
    except InvalidRecord as error:
        reason = str(error)
    else:
        group = ReadableGroup.of(
            record,
            prompt_ids=record.prompt.token_ids,
            response_ids=[response.token_ids for response in record.responses],
            advantages=group_advantages([response.reward for response in record.responses]),
        )
    return ArchivedEntry.of(entry, outcome=EntryOutcome.BACKLOG, reason=reason, step=step), group


def _write_lines(path: Path, tables: Iterable[Any]) -> int:
    """The same columns; the payload in base64."""
    num_rows = 0
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            for batch in table.to_batches(max_chunksize=256):
                for row in batch.to_pylist():
                    row["payload"] = base64.b64encode(row["payload"]).decode()
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    num_rows += 1
        file.flush()
        os.fsync(file.fileno())
    return num_rows


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    with directory.storage_errors_as_publish_failed(f"the export {path.name}", path.parent):
        directory.make_durable_directory(path.parent)
        try:
            yield temporary
            os.replace(temporary, path)
            directory.flush_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
