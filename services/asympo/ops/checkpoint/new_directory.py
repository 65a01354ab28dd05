"""A directory that a command writes for others: whole under its name, or not there."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asympo.common.checkpoints.directory import flush_directory, flush_files, make_durable_directory
from asympo.common.errors import BadSetting


def refuse_if_there(to: Path) -> Path:
    """The absolute path of a directory that is to be made; BadSetting if anything is there."""
    to = to.absolute()
    if os.path.lexists(to):
        raise BadSetting(f"{to} exists: give a new directory")
    return to


@contextmanager
def written_beside(to: Path) -> Iterator[Path]:
    """A new directory that gets its name, durably, when the block ends well and is removed when not."""
    make_durable_directory(to.parent)
    unfinished = to.parent / f".{to.name}-{secrets.token_hex(8)}.unfinished"
    unfinished.mkdir()
    try:
        yield unfinished
        flush_files(unfinished)
        flush_directory(unfinished)
        refuse_if_there(to)
        unfinished.rename(to)
        flush_directory(to.parent)
    except BaseException:  # an interrupt leaves nothing either
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
