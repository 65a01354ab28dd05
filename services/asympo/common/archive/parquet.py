"""Parts as Parquet bytes and back."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from asympo.common.archive.rows import FORMAT, ArchivedEntry, EntryOutcome, PartInfo, ReadableGroup
from asympo.common.errors import BadSetting, CorruptArchive
from asympo.common.foreign.documents import parse_object
from asympo.common.foreign.text import reason_of

_METADATA_KEY = b"asympo.archive"
_ENTRY_COLUMNS = tuple(item.name for item in dataclasses.fields(ArchivedEntry))
ROWS_PER_GROUP = 1024
_MAX_INFO_BYTES = 16 * 2**20
_INFO: TypeAdapter[PartInfo] = TypeAdapter(PartInfo)


def encode_part(rows: Sequence[tuple[ArchivedEntry, ReadableGroup | None]], info: PartInfo) -> bytes:
    """A whole file. Equal rows and info give equal bytes under one build of pyarrow."""
    _, pq = arrow()
    metadata = {_METADATA_KEY: json.dumps(dataclasses.asdict(info), sort_keys=True)}
    sink = io.BytesIO()
    pq.write_table(
        table_of(rows).replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        row_group_size=ROWS_PER_GROUP,
    )
    return sink.getvalue()


def table_of(rows: Sequence[tuple[ArchivedEntry, ReadableGroup | None]]) -> Any:
    """Rows as an Arrow table."""
    pa, _ = arrow()
    columns: dict[str, list[Any]] = {
        name: [getattr(entry, name) for entry, _ in rows] for name in _ENTRY_COLUMNS
    }
    columns["outcome"] = [entry.outcome.value for entry, _ in rows]
    columns["prompt_text"] = [None if group is None else group.prompt_text for _, group in rows]
    columns["prompt_token_ids"] = [None if group is None else group.prompt_token_ids for _, group in rows]
    columns["responses"] = [
        None if group is None else [dataclasses.asdict(response) for response in group.responses]
        for _, group in rows
    ]
    return pa.table(columns, schema=schema_of(pa))


def read_info(path: Path) -> PartInfo:
    """What a part says of itself, from its last bytes; CorruptArchive or UnknownVersion naming the file."""
    pa, pq = arrow()
    try:
        metadata = pq.read_schema(path).metadata or {}
        document = parse_object(metadata[_METADATA_KEY], max_bytes=_MAX_INFO_BYTES)
        FORMAT.check(document.get(FORMAT.name), what=str(path))
        return _INFO.validate_python(document)
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError, ValidationError) as error:
        raise CorruptArchive(f"{path} is not a readable archive part: {reason_of(error)}") from error


def read_entries(content: bytes, *, what: Path) -> Iterator[ArchivedEntry]:
    """The entries of a part in order; raises CorruptArchive naming the file, `what`."""
    pa, pq = arrow()
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=list(_ENTRY_COLUMNS)):
            for row in batch.to_pylist():
                yield ArchivedEntry(**{**row, "outcome": EntryOutcome(row["outcome"])})
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise CorruptArchive(f"{what} is not an archive part: {reason_of(error)}") from error


def read_table(content: bytes, *, what: Path) -> Any:
    """A whole part with all its columns; raises CorruptArchive naming the file, `what`."""
    pa, pq = arrow()
    try:
        # Columns of a later release are left out.
        schema = schema_of(pa)
        return pq.read_table(io.BytesIO(content), columns=schema.names).cast(schema)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise CorruptArchive(f"{what} is not an archive part: {reason_of(error)}") from error


def verified(path: Path, *, sha256: str) -> bytes:
    """The content of a file; CorruptArchive naming it unless it has this digest."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptArchive(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CorruptArchive(f"{path} is damaged: it is not the file that was written")
    return content


def schema_of(pa: Any) -> Any:
    """Columns of a part."""
    token_ids = pa.list_(pa.int32())
    response = pa.struct(
        [
            ("text", pa.string()),
            ("token_ids", token_ids),
            ("reward", pa.float64()),
            ("advantage", pa.float64()),
            ("finish_reason", pa.string()),
            ("trained_token_mask", pa.list_(pa.bool_())),
        ]
    )
    return pa.schema(
        [
            pa.field("sequence", pa.int64(), nullable=False),
            pa.field("segment_end", pa.int64(), nullable=False),
            pa.field("step", pa.int64()),
            pa.field("outcome", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("group_id", pa.string(), nullable=False),
            pa.field("producer", pa.string(), nullable=False),
            pa.field("entry_id", pa.string(), nullable=False),
            pa.field("appended_at_seconds", pa.float64(), nullable=False),
            pa.field("payload", pa.binary(), nullable=False),
            pa.field("prompt_text", pa.string()),
            pa.field("prompt_token_ids", token_ids),
            pa.field("responses", pa.list_(response)),
        ]
    )


def arrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet module; BadSetting without them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BadSetting("the archive needs pyarrow: run pip install 'asympo[learner]'") from error
    return pyarrow, pyarrow.parquet
