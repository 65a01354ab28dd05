"""Groups for people: what a part holds, with what only the payload has beside it, and only those wanted."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asympo.common.archive.choice import Choice
from asympo.common.archive.parquet import ROWS_PER_GROUP, arrow, schema_of
from asympo.common.codec import WireLimits, decode_group
from asympo.common.errors import InvalidRecord
from asympo.common.records import RolloutGroup

_COLUMNS = ("functions", "notes", "segments", "unscored", "columns")
"""JSON texts: values and notes of the reward functions and the segments, a list entry for each response;
responses without a reward; the columns of the row."""


def readable(table: Any, choice: Choice) -> Any:
    """The rows of an Arrow table that are wanted, with the columns of _COLUMNS."""
    pa, _ = arrow()
    added: dict[str, list[str | None]] = {name: [] for name in _COLUMNS}
    wanted = []
    rows = zip(table.column("step").to_pylist(), table.column("payload"), strict=True)
    for number, (step, payload) in enumerate(rows):
        group = _decoded(payload.as_py())
        responses = [
            {"reward": each.reward, "functions": each.function_values}
            for each in (group.responses if group else ())
        ]
        if choice.takes(step=step, prompt=group.prompt.text if group else "", responses=responses):
            wanted.append(number)
            for name, text in _texts(group).items():
                added[name].append(text)
    chosen = table.replace_schema_metadata(None).take(pa.array(wanted, pa.int64()))
    for name in _COLUMNS:
        chosen = chosen.append_column(pa.field(name, pa.string()), pa.array(added[name], pa.string()))
    return chosen


def by_step(table: Any) -> Iterator[tuple[int, Any]]:
    """Each step with its rows; those of no step are left out."""
    pa, _ = arrow()
    steps = table.column("step").to_pylist()
    for step in dict.fromkeys(step for step in steps if step is not None):
        yield step, table.take(pa.array([row for row, each in enumerate(steps) if each == step], pa.int64()))


def write_tables(path: Path, tables: Iterable[Any]) -> int:
    """One file of many tables, one at a time in memory; returns the number of rows. Raises OSError."""
    pa, pq = arrow()
    schema = pa.schema([*schema_of(pa), *(pa.field(name, pa.string()) for name in _COLUMNS)])
    num_rows = 0
    with open(path, "xb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
                num_rows += table.num_rows
        file.flush()
        os.fsync(file.fileno())
    return num_rows


def _decoded(payload: bytes) -> RolloutGroup | None:
    try:
        return decode_group(payload, limits=WireLimits())
    except InvalidRecord:
        return None


def _texts(group: RolloutGroup | None) -> dict[str, str | None]:
    if group is None:
        return dict.fromkeys(_COLUMNS)
    return {
        "functions": _json([dict(each.function_values) for each in group.responses]),
        "notes": _json([dict(each.function_notes) for each in group.responses]),
        "segments": _json([[asdict(segment) for segment in each.segments] for each in group.responses]),
        "unscored": _json([{"text": each.text, "reason": each.reason} for each in group.unscored]),
        "columns": group.columns_json or None,
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
