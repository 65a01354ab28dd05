"""The weights of a policy that is an adapter: its base with a product added to each linear.

    W = bfloat16(base + scale * (b_1 a_1 + b_2 a_2 + ... + b_r a_r))

b_k is a column of B and a_k a row of A. Every product and every sum is rounded to float32 by itself, from
left to right, which no processor and no library does otherwise. So whoever merges gets the same bits, and
the manifest can hold their digests. What is added to is always the base's own file: merges never accumulate.
"""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asympo.common.checkpoints.cache import note_use
from asympo.common.checkpoints.digests import (
    Checksum,
    TensorSpan,
    available_cores,
    open_regular,
    tensor_spans,
    weight_files,
)
from asympo.common.checkpoints.manifest import Manifest, TensorEntry, encode_manifest
from asympo.common.checkpoints.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST_NAME, WEIGHT_FILES
from asympo.common.checkpoints.rooms import ScratchRoom
from asympo.common.errors import CorruptCheckpoint
from asympo.common.foreign.documents import parse_object

_MAX_CONFIG_BYTES = 1 << 20
_PREFIX = "base_model.model."
"""Which PEFT puts before the name of a module."""
_TILE_VALUES = 1 << 16
"""Of a matrix, at a time: what stays in a core's cache while all columns are added."""
_KEPT = 2
"""Merged policies that a process keeps: the one that is served, and the one that comes."""
_checksums: dict[str, bytes] = {}
"""Of tensors that had their digest, by that: comparing them again takes a fortieth of the time."""
_Floats = NDArray[np.float32]
_Words = NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class AdapterFactors:
    """What is added to a base."""

    scale: np.float32
    pairs: Mapping[str, tuple[_Floats, _Floats]]
    """A and B by the name of the weight that they are added to."""

    @classmethod
    def read(cls, path: Path) -> "AdapterFactors":
        """From a directory in PEFT's form; CorruptCheckpoint."""
        try:
            with os.fdopen(open_regular(path / ADAPTER_CONFIG), "rb") as file:
                config = parse_object(file.read(_MAX_CONFIG_BYTES + 1), max_bytes=_MAX_CONFIG_BYTES)
            rank, alpha = int(config["r"]), float(config["lora_alpha"])
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise CorruptCheckpoint(f"{path / ADAPTER_CONFIG} cannot be read: {error!r}") from error
        sides: dict[str, dict[str, _Floats]] = {}
        for tensor in tensor_spans(path / ADAPTER_WEIGHTS):
            module, _, side = tensor.name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
            if side not in ("lora_A", "lora_B") or tensor.dtype != "BF16" or len(tensor.shape) != 2:
                raise CorruptCheckpoint(
                    f"{path / ADAPTER_WEIGHTS} holds {tensor.name}, which cannot be added"
                )
            sides.setdefault(f"{module}.weight", {})[side] = _widened(_read(tensor))
        pairs = {}
        for name, found in sides.items():
            a, b = found.get("lora_A"), found.get("lora_B")
            if a is None or b is None or not len(a) == b.shape[1] == rank:
                raise CorruptCheckpoint(f"{path / ADAPTER_WEIGHTS} has no fitting A and B of {name}")
            pairs[name] = (a, b)
        return cls(scale=np.float32(scale), pairs=pairs)


def with_product(base: _Floats, a: _Floats, b: _Floats, *, scale: np.float32) -> _Floats:
    """Some rows of a matrix with the product of A and the same rows of B.

    Each ufunc rounds by itself: nothing here may be fused or summed in another order.
    """
    total = b[:, :1] * a[0]
    product = np.empty_like(total)
    for k in range(1, len(a)):
        np.multiply(b[:, k : k + 1], a[k], out=product)
        np.add(total, product, out=total)
    np.multiply(total, scale, out=total)
    np.add(base, total, out=total)
    return total


def tiles(num_rows: int, num_columns: int) -> list[slice]:
    """Rows of a matrix that are merged at a time."""
    step = max(1, _TILE_VALUES // num_columns)
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def merged_entries(base: Path, manifest: Manifest, adapter: Path) -> tuple[TensorEntry, ...]:
    """What a manifest says of the merged tensors; `manifest` is that of the base. CorruptCheckpoint.

    On one core: the others train.
    """
    published = {entry.name: entry for entry in manifest.tensors}
    read = AdapterFactors.read(adapter)
    merged: dict[str, TensorEntry] = {}
    with ThreadPoolExecutor(1) as pool:
        for file in weight_files(base):
            for tensor in tensor_spans(file):
                if (pair := read.pairs.get(tensor.name)) is None:
                    continue
                words = _read(tensor)
                _require_unchanged(tensor, words, sha256=published[tensor.name].sha256)
                _add_to(words, tensor, *pair, scale=read.scale, pool=pool)
                merged[tensor.name] = TensorEntry(
                    name=tensor.name,
                    dtype=tensor.dtype,
                    shape=tensor.shape,
                    sha256=hashlib.sha256(words.data).hexdigest(),
                )
    if left := read.pairs.keys() - merged.keys():
        raise _left_out(adapter, base, left)
    return tuple(each for _, each in sorted({**published, **merged}.items()))


def write_merged(base: Path, base_manifest: Manifest, adapter: Path, manifest: Manifest, out: Path) -> None:
    """A whole policy into an empty directory; CorruptCheckpoint unless it is what `manifest` says."""
    for entry in base_manifest.files:
        if not WEIGHT_FILES.fullmatch(entry.name):
            try:
                shutil.copyfile(base / entry.name, out / entry.name)
            except FileNotFoundError as error:
                raise CorruptCheckpoint(f"{base / entry.name} is missing") from error
            if hashlib.sha256((out / entry.name).read_bytes()).hexdigest() != entry.sha256:
                raise CorruptCheckpoint(f"{base / entry.name} does not match the digest in its manifest")
    wanted = {entry.name: entry.sha256 for entry in manifest.tensors}
    read = AdapterFactors.read(adapter)
    if left := read.pairs.keys() - wanted.keys():
        raise _left_out(adapter, base, left)
    with ThreadPoolExecutor(available_cores()) as pool:
        for file in weight_files(base):
            tensors = tensor_spans(file)
            with open(file, "rb") as source, open(out / file.name, "xb") as target:
                target.write(source.read(min(tensor.span.offset for tensor in tensors)))
                for tensor, content in _merged(file, read, pool):
                    if hashlib.sha256(content).hexdigest() != wanted.pop(tensor.name, None):
                        raise CorruptCheckpoint(
                            f"{tensor.name} of {base.name} with the adapter in {adapter} is not what the "
                            "manifest says: the adapter is for another base, or the base has changed"
                        )
                    target.write(content)
    if wanted:
        raise CorruptCheckpoint(f"{base} lacks {min(wanted)}, which the policy in {adapter} has")


class MergeRoom:
    """Where a process keeps merged policies: a directory of its own, gone when it ends."""

    def __init__(self) -> None:
        self._room = ScratchRoom("merged")
        self.path = self._room.path

    def merge(self, base: Path, base_manifest: Manifest, adapter: Path, manifest: Manifest) -> None:
        """Puts the whole policy where `place` says."""
        final = self.place(manifest)
        temporary = Path(tempfile.mkdtemp(dir=self.path))
        try:
            write_merged(base, base_manifest, adapter, manifest, temporary)
            (temporary / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
            shutil.rmtree(final, ignore_errors=True)
            os.rename(temporary, final)
            note_use(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in sorted(self.path.glob("step-*"), key=lambda each: each.stat().st_mtime_ns)[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def place(self, manifest: Manifest) -> Path:
        """The directory of a merged policy, there or not."""
        return self.path / str(manifest.name)


def _merged(file: Path, adapter: AdapterFactors, pool: Executor) -> Iterator[tuple[TensorSpan, Any]]:
    """Tensors of one file of the base in its order, with what the merged file holds for each."""
    for tensor in tensor_spans(file):
        pair = adapter.pairs.get(tensor.name)
        if pair is None:
            yield tensor, _read_bytes(tensor)
        else:
            words = _read(tensor)
            _add_to(words, tensor, *pair, scale=adapter.scale, pool=pool)
            yield tensor, words


def _add_to(
    words: _Words, tensor: TensorSpan, a: _Floats, b: _Floats, *, scale: np.float32, pool: Executor
) -> None:
    """In place."""
    if words.shape != (len(b), a.shape[1]):
        raise CorruptCheckpoint(
            f"an adapter for {tensor.name} of [{len(b)}, {a.shape[1]}] does not fit {tensor.span.path}: that "
            f"holds {list(words.shape)}: it was trained on another base"
        )
    for _ in pool.map(lambda each: _add(words[each], a, b[each], scale), tiles(*words.shape)):
        pass


def _left_out(adapter: Path, base: Path, names: Iterable[str]) -> CorruptCheckpoint:
    return CorruptCheckpoint(f"{adapter} is an adapter for {min(names)}, which {base} does not have")


def _require_unchanged(tensor: TensorSpan, words: _Words, *, sha256: str) -> None:
    """What is added to a base that has changed since would be proved right by readers that have it too."""
    checksum = Checksum(words.data).digest()
    if _checksums.get(sha256) == checksum:
        return
    if hashlib.sha256(words.data).hexdigest() != sha256:
        raise CorruptCheckpoint(
            f"{tensor.name} in {tensor.span.path} is not what the manifest says: it has changed since"
        )
    _checksums[sha256] = checksum


def _add(words: _Words, a: _Floats, b: _Floats, scale: np.float32) -> None:
    """In place."""
    total = with_product(_widened(words), a, b, scale=scale)
    if not np.isfinite(total).all():
        raise CorruptCheckpoint("an adapter makes values that are not finite")
    bits = total.view(np.uint32)
    # To nearest, ties to even.
    bits += 0x7FFF + ((bits >> 16) & 1)
    words[...] = bits >> 16


def _widened(words: _Words) -> _Floats:
    wide: _Floats = (words.astype(np.uint32) << 16).view(np.float32)
    return wide


def _read(tensor: TensorSpan) -> _Words:
    if tensor.dtype != "BF16":
        raise CorruptCheckpoint(
            f"{tensor.name} in {tensor.span.path} is {tensor.dtype}, and no adapter fits that"
        )
    return np.frombuffer(_read_bytes(tensor), np.uint16).reshape(tensor.shape)


def _read_bytes(tensor: TensorSpan) -> bytearray:
    content = bytearray(tensor.span.size)
    with os.fdopen(open_regular(tensor.span.path), "rb") as file:
        file.seek(tensor.span.offset)
        if file.readinto(content) != len(content):
            raise CorruptCheckpoint(f"{tensor.span.path} is truncated")
    return content
