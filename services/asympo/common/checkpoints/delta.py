"""How a file of weights differs from another of the same size: lossless, and a piece at a time.

At the learning rates of reinforcement learning few bfloat16 values change from one policy to the next, and
most of those to a neighbour. So the file holds the distances between the 16-bit words that changed, and what
was added to each: half of what their XOR takes when it is compressed.
"""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from asympo.common.checkpoints.digests import Checksum, open_regular
from asympo.common.errors import CorruptCheckpoint

_MAGIC = b"asympo delta 1\n\0"
_SIZE = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
_COUNTS = struct.Struct("<II")
_WORDS_AT_ONCE = 1 << 22
_ESCAPE = 255
_LEVEL = 3
_Words = NDArray[Any]


def write_delta(old: Path, new: Path, out: Path, *, old_checksum: str | None, max_bytes: int) -> bool:
    """Write how `new` differs from `old`; False where a whole file is the better choice.

    That is: another size, more than `max_bytes`, an old file that no longer has its checksum, or a piece that
    does not come back bit for bit. What was written by then is of no use. An old file without a checksum is
    taken as it is.
    """
    with open(out, "xb") as file:
        return _encoded(old, new, file.write, old_checksum=old_checksum, max_bytes=max_bytes) is not None


def delta_size(old: Path, new: Path, *, max_bytes: int) -> int | None:
    """Bytes of what `write_delta` would write; None where a whole file is the better choice."""
    return _encoded(old, new, len, old_checksum=None, max_bytes=max_bytes)


def apply_delta(old: Path, delta: Path, out: Path) -> None:
    """Write the file that `delta` was made for; CorruptCheckpoint where it does not fit `old`.

    Whether the result is right, only its digest tells.
    """
    with os.fdopen(open_regular(delta), "rb") as file, open(out, "xb") as target:
        head = file.read(len(_MAGIC) + _SIZE.size)
        if head[: len(_MAGIC)] != _MAGIC or len(head) != len(_MAGIC) + _SIZE.size:
            raise CorruptCheckpoint(f"{delta} is not a delta that this build reads")
        (size,) = _SIZE.unpack(head[len(_MAGIC) :])
        if size != old.stat().st_size:
            raise CorruptCheckpoint(f"{delta} is for a file of {size} bytes and not for {old}")
        try:
            for before in _pieces(old):
                target.write(memoryview(_decode(_Source(file), before))[: len(before)])
        except (zstandard.ZstdError, struct.error, ValueError) as error:
            raise CorruptCheckpoint(f"{delta} is damaged: {error}") from error
        if file.read(1):
            raise CorruptCheckpoint(f"{delta} is longer than what it describes")


def _encoded(
    old: Path, new: Path, write: Callable[[bytes], object], *, old_checksum: str | None, max_bytes: int
) -> int | None:
    """Bytes that were written; None where a whole file is the better choice."""
    size, checksum, num_bytes = new.stat().st_size, Checksum(), 0
    if old.stat().st_size != size:
        return None
    head = _MAGIC + _SIZE.pack(size)
    write(head)
    for before, after in zip(_pieces(old), _pieces(new), strict=True):
        checksum.update(before)
        content = _encode(_words(before), _words(after))
        num_bytes += len(content)
        if num_bytes > max_bytes or _decode(_Source(content), before) != _even(after):
            return None
        write(content)
    return len(head) + num_bytes if old_checksum in (None, checksum.hexdigest()) else None


class _Source:
    """Reads exactly what is asked for, from a file or from memory."""

    def __init__(self, content: bytes | IO[bytes]) -> None:
        self._content = content
        self._at = 0

    def take(self, size: int) -> bytes:
        if isinstance(self._content, bytes):
            found = self._content[self._at : self._at + size]
            self._at += size
        else:
            found = self._content.read(size)
        if len(found) != size:
            raise ValueError(f"{size - len(found)} bytes are missing")
        return found


def _pieces(path: Path) -> Iterator[bytes]:
    with os.fdopen(open_regular(path), "rb") as file:
        while piece := file.read(2 * _WORDS_AT_ONCE):
            yield piece


def _even(piece: bytes) -> bytes:
    return piece + b"\0" * (len(piece) % 2)


def _words(piece: bytes) -> _Words:
    return np.frombuffer(_even(piece), "<u2")


def _encode(old: _Words, new: _Words) -> bytes:
    places = np.flatnonzero(old != new)
    added = (new[places] - old[places]).view("<i2").astype(np.int32)
    return _packed(np.diff(places, prepend=-1) - 1, "<u4") + _packed((added << 1) ^ (added >> 31), "<u2")


def _decode(source: _Source, old: bytes) -> bytearray:
    """The piece that follows, made even."""
    new = bytearray(_even(old))
    words = np.frombuffer(new, "<u2")
    gaps = _unpacked(source, "<u4", max_values=len(words))
    folded = _unpacked(source, "<u2", max_values=len(words))
    places = np.cumsum(gaps + 1) - 1
    if len(gaps) != len(folded) or (len(places) and places[-1] >= len(words)):
        raise ValueError("its values do not fit the file that it is for")
    words[places] += ((folded >> 1) ^ -(folded & 1)).astype("<i2").view("<u2")
    return new


def _packed(values: _Words, wide: str) -> bytes:
    """One byte each; those that need more have 255 there and follow in full."""
    short, long = np.minimum(values, _ESCAPE).astype("u1"), values[values >= _ESCAPE].astype(wide)
    body = _COUNTS.pack(len(short), len(long)) + short.tobytes() + long.tobytes()
    frame = zstandard.ZstdCompressor(level=_LEVEL).compress(body)
    return _LENGTH.pack(len(frame)) + frame


def _unpacked(source: _Source, wide: str, *, max_values: int) -> _Words:
    limit = _COUNTS.size + max_values * (1 + np.dtype(wide).itemsize)
    (length,) = _LENGTH.unpack(source.take(_LENGTH.size))
    frame = source.take(min(length, 2 * limit))
    # Known before anything is unpacked: a damaged frame must not take all memory.
    if not _COUNTS.size <= zstandard.frame_content_size(frame) <= limit:
        raise ValueError("a part of it has an impossible size")
    body = zstandard.ZstdDecompressor().decompress(frame)
    num_short, num_long = _COUNTS.unpack_from(body)
    values = np.frombuffer(body, "u1", num_short, _COUNTS.size).astype(np.int64)
    values[values == _ESCAPE] = np.frombuffer(body, wide, num_long, _COUNTS.size + num_short)
    return values
