"""A terminal that may go away, a log on a full disk: a run goes on, or stops in order, without them."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class SteadyStream:
    """A text stream that falls silent where it leads nowhere any more: closed terminal, full disk."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._fall_silent()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        """What is buffered must go somewhere, or the interpreter's last flush fails once more."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady_terminal() -> Iterator[None]:
    """Standard output and error cannot fail inside."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SteadyStream(before[0]), SteadyStream(before[1])
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
