"""The three records that the auditor counts from, read without any code of the log or the learner."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asympo.common.errors import AsympoError
from asympo.common.jsonl import of_owners


class AuditImpossible(AsympoError):
    """A record is missing or damaged: nothing can be said of the run, which is a failure."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Acknowledged:
    """One line of a generator's journal: the broker said that it has this group."""

    group_id: str
    sequence: int
    digest: str
    """sha256 of the payload, hexadecimal."""
    producer: str
    at_seconds: float
    """Wall clock when it was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedSegment:
    """One line of the learner's own record."""

    step: int | None
    """None for a segment that was passed over."""
    first_sequence: int
    last_sequence: int
    group_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Archived:
    """One row of the archive: what the learner consumed."""

    sequence: int
    step: int | None
    group_id: str
    producer: str
    digest: str
    outcome: str
    """trained, without_signal or dead_letter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollback:
    """The broker came back with an older log."""

    held_sequence: int
    """Newest number that the older log held."""
    lost_up_to: int
    """Newest number given out before."""
    settled_at_seconds: float
    """When the learner had repaired it."""


def read_journal(path: Path) -> list[Acknowledged]:
    """Every acknowledged append of one generator, over all its lives."""
    return [
        Acknowledged(
            group_id=str(row["group_id"]),
            sequence=int(row["sequence"]),
            digest=str(row["payload_sha256"]),
            producer=str(row["producer"]),
            at_seconds=float(row["at_seconds"]),
        )
        for row in read_rows(path)
    ]


def read_trained(path: Path) -> list[TrainedSegment]:
    """The learner's segments as they count for the final weights, in log order.

    What a learner consumed and did not commit its successor consumes again: a line voids every earlier line
    that ends at or after its own beginning. A line of a lower fence than one before it counts for nothing.
    """
    kept: list[TrainedSegment] = []
    for row in of_owners(read_rows(path)):
        segment = TrainedSegment(
            step=None if row["step"] is None else int(row["step"]),
            first_sequence=int(row["first_sequence"]),
            last_sequence=int(row["last_sequence"]),
            group_ids=tuple(str(group_id) for group_id in row["group_ids"]),
        )
        while kept and kept[-1].last_sequence >= segment.first_sequence:
            kept.pop()
        kept.append(segment)
    return kept


def read_archive(run_directory: Path, *, state_name: str) -> list[Archived]:
    """Every row that the final training state vouches for, in order of sequence.

    A state names its newest part by digest and each part the one before; whatever else lies in the folder was
    left by learners that died or lost the run. Raises AuditImpossible where the chain is broken.
    """
    from pyarrow import parquet

    rows: list[Archived] = []
    link = json.loads((run_directory / "train" / state_name / "manifest.json").read_bytes()).get("archive")
    if link is None:
        raise AuditImpossible(f"the final training state {state_name} names no archive")
    while link is not None:
        path = run_directory / "archive" / link["name"]
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise AuditImpossible(
                f"{path} is named by what follows it and cannot be read: {error}"
            ) from error
        if digest != link["sha256"]:
            raise AuditImpossible(f"{path} is not the file that was written: its digest differs")
        table = parquet.read_table(path)
        rows.extend(_archived(row) for row in table.to_pylist())
        link = json.loads(table.schema.metadata[b"asympo.archive"]).get("parent")
    return sorted(rows, key=lambda row: row.sequence)


def _archived(row: Mapping[str, Any]) -> Archived:
    return Archived(
        sequence=int(row["sequence"]),
        step=None if row["step"] is None else int(row["step"]),
        group_id=str(row["group_id"]),
        producer=str(row["producer"]),
        digest=hashlib.sha256(row["payload"]).hexdigest(),
        outcome=str(row["outcome"]),
    )


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSONL file; a line that a kill tore is left out."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
