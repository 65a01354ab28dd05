"""The broker's protocol (RESP2), as far as a proxy needs it: where a message ends, what it says."""

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from asympo.common.rollout_log.lua import load_script, script_names

_READ_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyError:
    """An error the broker replied, such as "NOSCRIPT ..."."""

    text: str


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
    """The value of one message: int, bytes, list, None or ReplyError."""
    value, _ = _parse(frame, 0)
    return value


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


def encode_command(*parts: bytes | str | int) -> bytes:
    """A request as its bytes."""
    raw = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in raw)


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


def _parse(frame: bytes, start: int) -> tuple[Any, int]:
    line_end = frame.index(b"\r\n", start)
    kind, text, after = frame[start : start + 1], frame[start + 1 : line_end], line_end + 2
    if kind == b"+":
        return text, after
    if kind == b"-":
        return ReplyError(text=text.decode(errors="replace")), after
    if kind == b":":
        return int(text), after
    if kind == b"$":
        size = int(text)
        return (None, after) if size < 0 else (frame[after : after + size], after + size + 2)
    if kind == b"*":
        if int(text) < 0:
            return None, after
        values = []
        for _ in range(int(text)):
            value, after = _parse(frame, after)
            values.append(value)
        return values, after
    raise ValueError(f"no message of the protocol begins with {kind!r}")
