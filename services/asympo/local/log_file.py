"""A log that another process appends to, kept small by this one."""

import contextlib
from pathlib import Path


def keep_small(path: Path, *, max_bytes: int) -> None:
    """Moves what is older into `<name>.1` and goes on with an empty file; both are at most this large.

    The writer has the file open to append, so it goes on at the new end. A line written between the copy and
    the cut is lost.
    """
    try:
        size = path.stat().st_size
        if size <= max_bytes:
            return
        with path.open("rb") as log:
            log.seek(max(0, size - max_bytes))
            kept = log.read()
    except FileNotFoundError:
        return
    with contextlib.suppress(OSError):
        # On a full disk room matters more than what is old.
        path.with_name(f"{path.name}.1").write_bytes(kept)
    with path.open("r+b") as log:
        log.truncate(0)


def last_sentence(text: str) -> str:
    """What a process said last that tells why it ended; empty when it said nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for tells in (_is_ours, _is_exception, _is_severe):
        for line in reversed(lines):
            if tells(line):
                return line.removeprefix("asympo: ")
    return lines[-1] if lines else ""


def _is_ours(line: str) -> bool:
    return line.startswith("asympo: ")


def _is_exception(line: str) -> bool:
    name = line.partition(":")[0]
    words = name.rpartition(".")[2]
    return name.replace(".", "").replace("_", "").isalnum() and words.endswith(("Error", "Exception"))


def _is_severe(line: str) -> bool:
    return " ERROR " in line or " CRITICAL " in line
