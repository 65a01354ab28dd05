"""Digests of files and of the tensors inside safetensors files, on all cores and without torch."""

import hashlib
import itertools
import math
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import xxhash

from asympo.common.checkpoints.manifest import TensorEntry
from asympo.common.checkpoints.names import WEIGHT_FILES
from asympo.common.errors import CorruptCheckpoint
from asympo.common.foreign.documents import parse_object

_CHUNK_BYTES = 4 << 20
"""Large enough that hashlib and read(2), which release the interpreter lock, dominate."""
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
_MAX_HEADER_BYTES = 100 << 20
"""The safetensors format's own limit."""
Checksum = xxhash.xxh3_128
"""Tells a process whether a file is still as it was, in a thirtieth of the time of a digest. Others rely on
digests alone: it finds damage, and no forgery."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A byte range of one file."""

    path: Path
    """The file."""
    offset: int
    """First byte."""
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpan:
    """Where a safetensors file keeps one tensor."""

    name: str
    """Tensor name."""
    dtype: str
    """safetensors type name."""
    shape: tuple[int, ...]
    """Dimensions."""
    span: Span
    """Its bytes."""


def open_regular(path: Path) -> int:
    """A read-only descriptor of a regular file; CorruptCheckpoint for a symlink or anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CorruptCheckpoint(f"{path} is not a regular file")
    return descriptor


def digest_span(span: Span, *, checksum: Checksum | None = None) -> str:
    """sha256 of a byte range; CorruptCheckpoint when the file ends before it.

    A checksum is given the very bytes that were hashed.
    """
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(span.size, 1))))
    descriptor = open_regular(span.path)
    try:
        offset, left = span.offset, span.size
        while left:
            num_read = os.preadv(descriptor, [buffer[: min(left, len(buffer))]], offset)
            if num_read == 0:
                raise CorruptCheckpoint(f"{span.path} is truncated: {left} bytes are missing")
            hasher.update(buffer[:num_read])
            if checksum is not None:
                checksum.update(buffer[:num_read])
            offset, left = offset + num_read, left - num_read
    except OSError as error:
        raise CorruptCheckpoint(f"{span.path} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return hasher.hexdigest()


def digest_spans(
    spans: Sequence[Span],
    *,
    num_threads: int | None = None,
    checksums: Mapping[Span, Checksum] = MappingProxyType({}),
) -> list[str]:
    """sha256 of every range, in order. The largest start first, so no thread is left with one at the end.

    Ranges that have a checksum are given to it as well.
    """
    if not spans:
        return []
    workers = min(num_threads or available_cores(), len(spans))
    order = sorted(range(len(spans)), key=lambda position: -spans[position].size)

    def digest(position: int) -> str:
        return digest_span(spans[position], checksum=checksums.get(spans[position]))

    with ThreadPoolExecutor(workers, thread_name_prefix="checkpoint-digest") as pool:
        digests = dict(zip(order, pool.map(digest, order), strict=True))
    return [digests[position] for position in range(len(spans))]


def available_cores() -> int:
    """How many cores this process may use at a time: a container sees more than its quota allows."""
    quota = _cpu_quota()
    return min(len(visible_cores()), math.ceil(quota)) if quota else len(visible_cores())


def visible_cores() -> list[int]:
    """Cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cpu_quota() -> float:
    """Cores that the container may use at a time; 0 without a limit."""
    try:
        quota, period = _CPU_MAX.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # "max" as well
        return 0.0


def weight_files(path: Path) -> list[Path]:
    """Those of a directory that loaders read, by name."""
    return sorted(each for each in path.iterdir() if WEIGHT_FILES.fullmatch(each.name))


def tensor_spans(path: Path) -> list[TensorSpan]:
    """Tensors of one safetensors file, in file order; CorruptCheckpoint when its header is wrong."""
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        file_size = os.fstat(descriptor).st_size
        header_size = int.from_bytes(file.read(8), "little")
        if file_size < 8 or header_size > min(_MAX_HEADER_BYTES, file_size - 8):
            raise CorruptCheckpoint(f"{path} is truncated or not a safetensors file")
        try:
            header = parse_object(file.read(header_size), max_bytes=_MAX_HEADER_BYTES)
            header.pop("__metadata__", None)
            entries = [
                _tensor_span(path, name, fields, start=8 + header_size) for name, fields in header.items()
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptCheckpoint(f"{path} has no valid safetensors header: {error}") from error
    entries.sort(key=lambda entry: entry.span.offset)
    end = 8 + header_size
    for entry in entries:
        if entry.span.offset != end or entry.span.size < 0:
            raise CorruptCheckpoint(f"{path} has overlapping or missing bytes at tensor {entry.name!r}")
        end += entry.span.size
    if end != file_size:
        raise CorruptCheckpoint(f"{path} holds {file_size} bytes where its header says {end}")
    return entries


def tensor_entries(paths: Iterable[Path]) -> tuple[TensorEntry, ...]:
    """Name, type, shape and digest of every tensor in the files, by name; a repeated name is an error."""
    tensors = [tensor for path in paths for tensor in tensor_spans(path)]
    return entries_of(tensors, digest_spans([tensor.span for tensor in tensors]))


def entries_of(tensors: Sequence[TensorSpan], digests: Sequence[str]) -> tuple[TensorEntry, ...]:
    """Manifest entries of tensors, by name; CorruptCheckpoint for a repeated name."""
    entries = [
        TensorEntry(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, sha256=digest)
        for tensor, digest in zip(tensors, digests, strict=True)
    ]
    entries.sort(key=lambda entry: entry.name)
    for left, right in itertools.pairwise(entries):
        if left.name == right.name:
            raise CorruptCheckpoint(f"tensor {left.name!r} is stored twice in one checkpoint")
    return tuple(entries)


def _tensor_span(path: Path, name: str, fields: dict[str, Any], *, start: int) -> TensorSpan:
    begin, end = (int(offset) for offset in fields["data_offsets"])
    return TensorSpan(
        name=name,
        dtype=str(fields["dtype"]),
        shape=tuple(int(size) for size in fields["shape"]),
        span=Span(path=path, offset=start + begin, size=end - begin),
    )
