"""The broker's protocol (RESP2), as far as a proxy needs it: where a message ends, what it says."""

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import hiredis

from asympo.common.rollout_log.lua import load_script, script_names

_READ_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One command on its way to the broker."""

    raw: bytes
    """Its bytes, to be sent as they are."""
    command: str
    """Upper case."""
    script: str | None
    """Name of the script it runs, by the product's own file name; None for any other command."""
    arguments: tuple[bytes, ...]
    """ARGV of a script, else what follows the command's name."""


class FrameSplitter:
    """Cuts a byte stream into whole messages of either direction, however they are split on the way."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._end = 0
        """Bytes of the first message that were looked at."""
        self._num_open = 1
        """Values that the first message still lacks."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Messages that are complete now."""
        self._buffer += data
        while self._take_values():
            frame = bytes(self._buffer[: self._end])
            del self._buffer[: self._end]
            self._end, self._num_open = 0, 1
            yield frame

    def _take_values(self) -> bool:
        while self._num_open:
            line_end = self._buffer.find(b"\r\n", self._end)
            if line_end < 0:
                return False
            kind, after = self._buffer[self._end : self._end + 1], line_end + 2
            if kind == b"$":
                size = int(self._buffer[self._end + 1 : line_end])
                after += size + 2 if size >= 0 else 0
                if after > len(self._buffer):
                    return False
            elif kind == b"*":
                self._num_open += max(0, int(self._buffer[self._end + 1 : line_end]))
            self._num_open -= 1
            self._end = after
        return True


class FrameReader:
    """Whole messages from a stream."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._splitter = FrameSplitter()
        self._ready: list[bytes] = []

    async def next(self) -> bytes | None:
        """The next message; None at the end of the stream. Raises OSError."""
        while not self._ready:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                return None
            self._ready.extend(self._splitter.feed(data))
        return self._ready.pop(0)


def parse_reply(frame: bytes) -> Any:
    """The value of one message: int, bytes, list, None or hiredis.ReplyError."""
    reader = hiredis.Reader()
    reader.feed(frame)
    return reader.gets()


def encode_command(*parts: bytes | str | int) -> bytes:
    """A request as its bytes."""
    return hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub knows tuples of one


def parse_request(frame: bytes) -> Request:
    """What a client asks for."""
    parts = parse_reply(frame)
    words: list[bytes] = (
        [part for part in parts if isinstance(part, bytes)] if isinstance(parts, list) else []
    )
    command = words[0].decode(errors="replace").upper() if words else ""
    script = None
    arguments = tuple(words[1:])
    if command in ("EVALSHA", "EVAL", "FCALL", "FCALL_RO") and len(words) > 2:
        script = _script_of(command, words[1])
        arguments = tuple(words[3 + int(words[2]) :])
    return Request(raw=frame, command=command, script=script, arguments=arguments)


def _script_of(command: str, name: bytes) -> str | None:
    if command.startswith("FCALL"):
        return name.decode(errors="replace")
    digest = name.decode(errors="replace").lower()
    if command == "EVAL":
        digest = hashlib.sha1(name, usedforsecurity=False).hexdigest()
    return _scripts_by_digest().get(digest)


@cache
def _scripts_by_digest() -> dict[str, str]:
    return {load_script(name).sha1: name for name in script_names()}
