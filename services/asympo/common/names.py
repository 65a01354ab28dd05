"""Names that several parts must agree on: what a run may be called, and who works for it."""

import re
from pathlib import Path

from asympo.common.errors import BadSetting

MAX_RUN_NAME_CHARS = 64
RUN_NAME = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_RUN_NAME_CHARS - 1}}}$"
"""Fits into a key with literal braces, a path, and a key prefix of an object store."""
MAX_HOLDER_CHARS = 128
"""A holder is what a process calls itself in the log."""


def is_run_name(run: str) -> bool:
    """Whether a run may be called this."""
    return re.fullmatch(RUN_NAME, run) is not None


def directory_of_run(root: Path, run: str) -> Path:
    """Where a run's files are below `root`: the one way from a run's name to a path. Raises BadSetting."""
    return root / check_run_name(run)


def check_run_name(run: str) -> str:
    """Returns `run` unchanged; raises BadSetting when it cannot be part of a key and a path."""
    if not is_run_name(run):
        raise BadSetting(
            f"run name {run!r} is not usable: give 1 to {MAX_RUN_NAME_CHARS} letters, digits, '.', '_' "
            "or '-', the first a letter or digit"
        )
    return run
