"""`samples.json`: groups of the first and of the last steps, kept for the report where they may be shown."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asympo.local.whole_file import write_whole

_NAME = "samples.json"
_MAX_GROUPS = 4
_MAX_CHARS = 2000


def keep_samples(directory: Path, groups: Sequence[Mapping[str, Any]]) -> None:
    """The first that come stay; the last are replaced by what is newest."""
    if not groups:
        return
    kept = read_samples(directory)
    kept["last"] = [_short(group) for group in groups[:_MAX_GROUPS]]
    kept.setdefault("first", kept["last"])
    write_whole(directory / _NAME, json.dumps(kept))


def read_samples(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """`first` and `last`; empty where none were shown."""
    try:
        found = json.loads((directory / _NAME).read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _MAX_CHARS else f"{value[:_MAX_CHARS]}…"
    if isinstance(value, Mapping):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value[:16]]
    return value
