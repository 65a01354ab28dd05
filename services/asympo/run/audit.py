"""Was any group trained twice? Counted from what the learner wrote down, not assumed.

The learner appends a line to `trained.jsonl` for each segment of the log it consumed (TrainedLog says what is
in it). What was not committed when the learner died is consumed again after the restart, from the state
before it: a line replaces all earlier ones that reach its first entry or beyond. What a learner adds after
another has taken the run over counts for nothing.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from asympo.common.jsonl import of_owners


def effective_steps(rows: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The rows that made the final weights, by step: going back to a step voids it and all that followed."""
    history: dict[int, Mapping[str, Any]] = {}
    for row in of_owners(rows):
        step = int(row["step"])
        while history and next(reversed(history)) >= step:
            history.popitem()
        history[step] = row
    return history


def effective_segments(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of `trained.jsonl` that made the final weights, in order of the log."""
    history: list[Mapping[str, Any]] = []
    for row in of_owners(rows):
        while history and history[-1]["last_sequence"] >= row["first_sequence"]:
            history.pop()
        history.append(row)
    return history


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a line torn by a kill is left out. An absent file has none."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def count_trained_twice(path: Path) -> tuple[int, int]:
    """Groups that occur more than once in the effective history, and groups in it altogether."""
    counts: Counter[str] = Counter()
    for row in effective_segments(read_rows(path)):
        counts.update(row["group_ids"])
    return sum(count - 1 for count in counts.values()), len(counts)
