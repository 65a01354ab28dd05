"""Rows as JSON, one a line, in a file that survives a kill, a full disk and a resumed run."""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

_TAIL_BLOCK_BYTES = 65536

Row = TypeVar("Row", bound=Mapping[str, Any])


def to_json(value: Any) -> str:
    """Strict JSON on one line: NaN and infinities become null, array scalars numbers, the rest strings."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a NumPy or torch scalar
        return _plain(value.item())
    return str(value)


class JsonlWriter:
    """Appends rows to one file.

    A row is there completely or not at all: a half-written last line, left by a kill or a full disk, is cut
    off when the file is opened or when the write fails. One writer per file; not thread-safe.
    """

    def __init__(self, path: Path, *, fsync: bool = True) -> None:
        """Open `path` for appending and create it with its folders; raises OSError."""
        self.path = path
        self._fsync = fsync
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._cut_torn_line()
            if is_new:
                _fsync_directory(path.parent)
        except OSError:
            os.close(self._file)
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and make it durable. Raises OSError, and then the file is as it was before."""
        data = memoryview((to_json(row) + "\n").encode(errors="backslashreplace"))
        size_before = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            if self._fsync:
                os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, size_before)
            raise

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._file).st_size
        end = size
        while end > 0:
            start = max(0, end - _TAIL_BLOCK_BYTES)
            newline = os.pread(self._file, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            log.warning("Cut a torn last line of %d bytes off %s", size - end, self.path)
            os.ftruncate(self._file, end)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file in order, empty when it does not exist.

    A torn last line is left out in silence, since a writer may be at work; any other line that is not a JSON
    object is left out with a warning.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            else:
                log.warning("Line %d of %s is not a JSON object; left out", number, path)


def of_owners(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows without those that a learner added after another had taken the run over: of a lower `fence`."""
    highest = 0
    for row in rows:
        # Other services and older releases write none.
        fence = row.get("fence")
        if isinstance(fence, int):
            if fence < highest:
                continue
            highest = fence
        yield row


def read_steps(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, one per step, in order of `step`.

    A learner that resumes trains again the steps after its last commit, so a row whose step is not above the
    one before it takes the place of all rows from that step on. What a learner adds after another has taken
    the run over is left out.
    """
    rows: list[dict[str, Any]] = []
    for row in of_owners(read_jsonl(path)):
        step = row.get("step")
        if not isinstance(step, int):
            log.warning("A row of %s has no step; left out", path)
            continue
        while rows and rows[-1]["step"] >= step:
            rows.pop()
        rows.append(row)
    return rows


def _fsync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
