"""The one way of reading a path in a setting: `~` is a home directory, the rest is meant as it is written."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator


def _expand(path: Path | None) -> Path | None:
    if path is None:
        return None
    if "\0" in str(path):
        raise ValueError("a path cannot hold a NUL character")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home directory for {path.parts[0]}: write the whole path") from None


def _expand_text(text: str | None) -> str | None:
    """Of a setting that may also hold something else, such as the id of a model."""
    if text is None or not text.startswith(("~", "/", ".")):
        return text
    return str(_expand(Path(text)))


SettingPath = Annotated[Path, AfterValidator(_expand)]
OptionalPath = Annotated[Path | None, AfterValidator(_expand)]
PathOrName = Annotated[str, AfterValidator(_expand_text)]
OptionalPathOrName = Annotated[str | None, AfterValidator(_expand_text)]
_VALIDATORS = (_expand, _expand_text)


def given_path(text: str) -> Path:
    """The same for a flag of a command, as argparse wants it."""
    try:
        path = _expand(Path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    assert path is not None
    return path


def is_path(metadata: Sequence[Any]) -> bool:
    """Whether a field of a settings model is a path, by what pydantic keeps of its annotation."""
    return any(isinstance(each, AfterValidator) and each.func in _VALIDATORS for each in metadata)


def anchored(values: Mapping[str, Any], paths: Sequence[tuple[str, ...]], base: Path) -> dict[str, Any]:
    """The values with those relative paths below `base` that are there and not in the working directory."""
    result: dict[str, Any] = {
        key: dict(each) if isinstance(each, Mapping) else each for key, each in values.items()
    }
    for *above, last in paths:
        table: Any = result
        for part in above:
            table = table.get(part) if isinstance(table, dict) else None
        given = table.get(last) if isinstance(table, dict) else None
        if not isinstance(given, str | Path) or os.path.isabs(given) or str(given).startswith("~"):
            continue
        if not Path(given).exists() and (base / given).exists():
            table[last] = str(base / given)
    return result
