"""How far the weights in two directories are apart: read a piece at a time, without torch."""

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asympo.common.checkpoints.digests import TensorSpan, open_regular, tensor_spans
from asympo.common.errors import BadSetting, CorruptCheckpoint
from asympo.ops.checkpoint.chosen import ChosenWeights

_VALUES_AT_ONCE = 1 << 20
_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
"""As numpy reads them; bfloat16, which it does not know, as its bits."""
_ROUNDED = ("BF16", "F16", "F32", "F64")
"""Types whose values can be compared with one another, the coarsest first."""
_Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class TensorChange:
    """One tensor of both directories."""

    name: str
    dtype: str
    """Type in which it was compared: the coarser of the two."""
    shape: tuple[int, ...]
    values: int
    """How many it holds; bytes, where numpy does not know the type."""
    changed: int
    """How many of them have other bits."""
    max_abs: float | None
    """Largest difference; None where the type has no values to subtract, or one of them is not finite."""
    squares: float
    """Sum of the squared differences."""
    base_squares: float
    """Sum of the squared values of the first one."""

    @property
    def relative_norm(self) -> float | None:
        """Norm of the difference over norm of the first one; None where that says nothing."""
        return relative_norm(self.squares, self.base_squares)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two directories of weights."""

    tensors: tuple[TensorChange, ...]
    """Those of both with the same shape, by name."""
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    other_shape: tuple[str, ...]
    """Names that both have, for tensors of different shapes."""

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs."""
        lone = self.only_in_a or self.only_in_b or self.other_shape
        return not lone and not any(tensor.changed for tensor in self.tensors)


def relative_norm(squares: float, base_squares: float) -> float | None:
    """Root of their ratio; None where it has no finite value."""
    if not squares:
        return 0.0
    if not base_squares or not math.isfinite(squares + base_squares):
        return None
    return math.sqrt(squares / base_squares)


def compare(a: ChosenWeights, b: ChosenWeights) -> Comparison:
    """Every tensor of both; BadSetting where they have none in common, CorruptCheckpoint."""
    ours, theirs = tensors_of(a), tensors_of(b)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise BadSetting(
            f"{a.path} and {b.path} have no tensor of the same name: they are models of different families, "
            f"such as {min(ours)} and {min(theirs)}"
        )
    same = [name for name in common if ours[name].shape == theirs[name].shape]
    return Comparison(
        tensors=tuple(_compare(ours[name], theirs[name]) for name in same),
        only_in_a=tuple(sorted(ours.keys() - theirs.keys())),
        only_in_b=tuple(sorted(theirs.keys() - ours.keys())),
        other_shape=tuple(sorted(set(common) - set(same))),
    )


def tensors_of(weights: ChosenWeights) -> dict[str, TensorSpan]:
    """By name, from the files that loaders read; BadSetting, CorruptCheckpoint."""
    files = weights.files
    if not files:
        raise BadSetting(
            f"{weights.path} holds no model.safetensors: give the directory of a policy or a model"
        )
    found: dict[str, TensorSpan] = {}
    for file in files.values():
        for tensor in tensor_spans(file):
            if tensor.name in found:
                raise CorruptCheckpoint(f"tensor {tensor.name!r} is stored twice in {weights.path}")
            found[tensor.name] = tensor
    return found


@dataclass(kw_only=True)
class _Sums:
    """What is known of a tensor after some of its pieces."""

    changed: int = 0
    max_abs: float = 0.0
    squares: float = 0.0
    base_squares: float = 0.0

    def add(self, a: _Array, b: _Array) -> None:
        """Values of the same places."""
        with np.errstate(invalid="ignore", over="ignore"):
            wide = a.astype(np.float64)
            difference = b.astype(np.float64) - wide
            self.base_squares += float(wide @ wide)
            self.squares += float(difference @ difference)
            self.max_abs = float(np.maximum(self.max_abs, np.abs(difference).max(initial=0.0)))


def _compare(a: TensorSpan, b: TensorSpan) -> TensorChange:
    dtype, sums = _common_type(a, b), _Sums()
    for raw_a, raw_b in _pieces(a, b):
        if dtype is None:
            sums.changed += int(np.count_nonzero(raw_a != raw_b))
            continue
        rounded_a, rounded_b = _rounded(raw_a, a.dtype, dtype), _rounded(raw_b, b.dtype, dtype)
        changed = _bits(rounded_a) != _bits(rounded_b)
        sums.changed += int(np.count_nonzero(changed))
        sums.add(_values(rounded_a, dtype), _values(rounded_b, dtype))
    is_known = dtype is not None and math.isfinite(sums.max_abs)
    return TensorChange(
        name=a.name,
        dtype=dtype or a.dtype,
        shape=a.shape,
        values=math.prod(a.shape) if dtype else a.span.size,
        changed=sums.changed,
        max_abs=sums.max_abs if is_known else None,
        squares=sums.squares,
        base_squares=sums.base_squares,
    )


def _common_type(a: TensorSpan, b: TensorSpan) -> str | None:
    """The coarser type of the two; None where only bytes can be compared."""
    if a.dtype == b.dtype:
        return a.dtype if a.dtype in _TYPES else None
    if a.dtype in _ROUNDED and b.dtype in _ROUNDED:
        return min(a.dtype, b.dtype, key=_ROUNDED.index)
    raise BadSetting(f"{a.name} is {a.dtype} in {a.span.path} and {b.dtype} in {b.span.path}: not comparable")


def _pieces(a: TensorSpan, b: TensorSpan) -> Iterator[tuple[_Array, _Array]]:
    """The same values of both, as they are stored; single bytes of types that numpy does not know."""
    with ExitStack() as stack:
        sides = []
        for tensor in (a, b):
            descriptor = open_regular(tensor.span.path)
            stack.callback(os.close, descriptor)
            kind = np.dtype(_TYPES.get(tensor.dtype, "u1"))
            sides.append((tensor, descriptor, kind, tensor.span.size // kind.itemsize))
        if sides[0][3] != sides[1][3]:
            raise CorruptCheckpoint(f"{a.name} has another size in {b.span.path} than its shape says")
        for start in range(0, sides[0][3], _VALUES_AT_ONCE):
            count = min(_VALUES_AT_ONCE, sides[0][3] - start)
            first, second = (
                np.frombuffer(_read(tensor, descriptor, start * kind.itemsize, count * kind.itemsize), kind)
                for tensor, descriptor, kind, _ in sides
            )
            yield first, second


def _read(tensor: TensorSpan, descriptor: int, offset: int, size: int) -> bytes:
    content = os.pread(descriptor, size, tensor.span.offset + offset)
    while len(content) < size:
        more = os.pread(descriptor, size - len(content), tensor.span.offset + offset + len(content))
        if not more:
            raise CorruptCheckpoint(f"{tensor.span.path} was cut short while it was read")
        content += more
    return content


def _rounded(raw: _Array, stored: str, wanted: str) -> _Array:
    """In the wanted type, to nearest, ties to even: as publishing rounds."""
    if stored == wanted:
        return raw
    values = _values(raw, stored)
    if wanted != "BF16":
        return values.astype(_TYPES[wanted])
    bits = values.astype("<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2")


def _values(raw: _Array, dtype: str) -> _Array:
    return (raw.astype("<u4") << 16).view("<f4") if dtype == "BF16" else raw


def _bits(values: _Array) -> _Array:
    return values.view(f"u{values.dtype.itemsize}")
