"""Weights read back through the layers that use them, and compared by value with a checkpoint's files.

A one-hot input times a linear layer is one column of its weight, exactly: one product and zeros. That holds
whatever packing or kernel lies behind the layer, so no copy of its own can stay behind unseen. Tensors that a
kernel reads as they lie in memory, or as vLLM packs them at a first load, are compared directly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from asympo.engines.base import Readback
from asympo.engines.vllm_blueprint import Blueprint

if TYPE_CHECKING:
    from torch import nn

MAX_VALUES = 1 << 16
"""Values that a reload looks at in a tensor that is compared directly; drawn in the same way."""
_NUM_MARKS = 200
"""Tensors of a file that are told apart inside one layer."""
_LINEAR, _ROWS = "multiplied", "looked up"
_NOT_WEIGHTS = frozenset({"kv_cache"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What one tensor of one layer must hold."""

    layer: str
    """Name of the module."""
    way: str
    """How it is read: multiplied, looked up, or by the path of a tensor in the layer."""
    places: torch.Tensor
    """Columns, rows or flat positions."""
    values: torch.Tensor
    """What they hold in the file, one line for each place; NaN where the file says nothing."""
    num_inputs: int
    """Length of the one-hot inputs of a multiplied layer."""
    num_changed: int
    """Places among them in which the policy and the one before differ."""


class Expectation:
    """What a checkpoint must look like in this worker, at places drawn anew for every one."""

    def __init__(self, blueprint: Blueprint, *, seed: int, num_columns: int | None) -> None:
        self._blueprint = blueprint
        self._random = torch.Generator().manual_seed(seed)
        self._num_columns = num_columns
        self._changed: dict[tuple[str, str], list[torch.Tensor]] | None = None
        self._expected: list[Expected] = []
        self._unknown: list[str] = []
        self._known: dict[str, set[str]] = {
            name: set(tensors_of(module)) for name, module in blueprint.model.named_modules()
        }

    def note_changes(self, changes: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Where the checkpoint and the one before differ: zeros elsewhere, under the files' names."""
        self._changed = {}
        self._blueprint.fill(changes, self._take_changes, background=0.0, dtype=torch.uint8)

    def note_unknown(self, what: str) -> None:
        """Something that nobody can say of the checkpoint: places drawn blindly would miss small steps."""
        self._unknown.append(what)

    def note_values(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """The checkpoint's own tensors."""
        self._blueprint.fill(weights, self._take_values, background=math.nan)

    @torch.no_grad()
    def compare(self, model: nn.Module) -> Readback:
        """Read the same places through the engine's layers."""
        uncovered = [*self._unknown, *self._unknown_tensors(model)]
        wrong, num_values, num_changed = [], 0, 0
        for expected in self._expected:
            got = _read(model.get_submodule(expected.layer), expected)
            if got is None:
                uncovered.append(f"{expected.layer} ({expected.way})")
                continue
            num_values += expected.values.numel()
            num_changed += expected.num_changed
            if num_wrong := _num_different(got, expected.values):
                wrong.append(
                    f"{expected.layer} ({expected.way}): {num_wrong} of {expected.values.numel()} values"
                )
        return Readback(
            num_values=num_values,
            num_changed=None if self._changed is None else num_changed,
            wrong=tuple(wrong),
            uncovered=tuple(uncovered),
        )

    def _take_changes(self, name: str, layer: nn.Module) -> None:
        assert self._changed is not None
        for way, tensor in self._ways(name, layer):
            self._changed[name, way] = _changed_places(way, tensor)

    def _take_values(self, name: str, layer: nn.Module) -> None:
        for way, tensor in self._ways(name, layer):
            values = _by_place(way, tensor)
            changed = (self._changed or {}).get((name, way), [])
            places = self._draw(len(values), changed, way)
            held = values[places].clone()
            if bool(held.isnan().all()):
                continue
            self._expected.append(
                Expected(
                    layer=name,
                    way=way,
                    places=places,
                    values=held,
                    num_inputs=len(values),
                    num_changed=int(torch.isin(places, torch.cat([*changed, places[:0]])).sum()),
                )
            )

    def _draw(self, num_places: int, changed: list[torch.Tensor], way: str) -> torch.Tensor:
        """Half of the limit for every tensor of the file among the changed places, half anywhere."""
        limit = self._num_columns if way in (_LINEAR, _ROWS) else MAX_VALUES
        if limit is None or num_places <= limit:
            return torch.arange(num_places)
        picked = [
            places[torch.randperm(len(places), generator=self._random)[: limit // 2]] for places in changed
        ]
        others = torch.randint(num_places, (limit // 2,), generator=self._random)
        return torch.cat([*picked, others]).unique()

    def _ways(self, name: str, layer: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """Ways to read a layer, with the tensor that each must show."""
        weight = layer._parameters.get("weight")
        if weight is not None and weight.ndim == 2 and _is_multiplied(layer):
            if _is_embedding(layer) and type(layer).__name__ != "ParallelLMHead":
                yield _ROWS, weight.data
            yield _LINEAR, weight.data
            for other, parameter in layer._parameters.items():
                if parameter is not None and other != "weight":
                    yield other, parameter.data
            return
        before, loaded = tensors_of(layer), set(layer._parameters)
        with self._blueprint.processed(layer):
            after = tensors_of(layer)
            self._known[name] |= set(after)
            for path, tensor in after.items():
                # A single number that vLLM adds is a constant, such as the scale of an unquantised cache.
                is_derived = before.get(path) is not tensor and tensor.numel() > 1
                if tensor.is_floating_point() and (path in loaded or is_derived):
                    yield path, tensor.detach()

    def _unknown_tensors(self, model: nn.Module) -> list[str]:
        """Tensors of the engine's layers that no first load of vLLM's makes: what reads them is unknown."""
        return [
            f"{name}.{path}"
            for name, module in model.named_modules()
            for path in sorted(set(tensors_of(module)) - self._known.get(name, set()))
            if "." not in path
        ]


def file_tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint directory, one at a time."""
    for name, path in _files_of_tensors(directory).items():
        yield name, _tensor_of(path, name)


def changes_between(
    directory: Path, before: Path, *, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """Marks where two checkpoints differ, once rounded to `dtype`, for each tensor that does."""
    files = _files_of_tensors(before)
    for number, (name, tensor) in enumerate(file_tensors(directory)):
        former = _tensor_of(files[name], name) if name in files else None
        if former is None or former.shape != tensor.shape:
            differs = torch.ones_like(tensor, dtype=torch.bool)
        else:
            if tensor.dtype != former.dtype:
                tensor, former = tensor.to(dtype), former.to(dtype)
            if torch.equal(tensor, former):
                continue
            differs = tensor != former
        yield name, differs.to(torch.uint8).mul_(1 + number % _NUM_MARKS)


def _files_of_tensors(directory: Path) -> dict[str, Path]:
    from safetensors import safe_open

    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update(dict.fromkeys(file.keys(), path))
    return found


def _tensor_of(path: Path, name: str) -> torch.Tensor:
    """The file is opened for each: a mapping stays, all of it counted as memory, while one tensor does."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def tensors_of(layer: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that a layer holds itself, by path, those in vLLM's own helper objects included."""
    from torch import nn

    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()

    def look(path: str, value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            found[path] = value
        elif isinstance(value, nn.Module) or depth == 0 or id(value) in seen:
            return
        elif type(value).__module__.startswith("vllm.") and hasattr(value, "__dict__"):
            seen.add(id(value))
            for name, inner in vars(value).items():
                look(f"{path}.{name}", inner, depth - 1)

    for name, value in (*layer._parameters.items(), *layer._buffers.items(), *layer.__dict__.items()):
        if name not in _NOT_WEIGHTS:
            look(name, value, 2)
    return found


def _changed_places(way: str, marks: torch.Tensor) -> list[torch.Tensor]:
    """Places of each mark separately: a stale tensor must not hide behind those it is fused with."""
    if way not in (_LINEAR, _ROWS):
        places = marks.flatten().nonzero().flatten()
        found = marks.flatten()[places]
        return [places[found == mark] for mark in found.unique()]
    # All of a row of the weight comes from one tensor of the file.
    of_row = marks.amax(dim=1)
    rows_of_marks = [(of_row == mark).nonzero().flatten() for mark in of_row.unique() if mark]
    if way == _ROWS:
        return rows_of_marks
    return [marks[rows].amax(dim=0).nonzero().flatten() for rows in rows_of_marks]


def _by_place(way: str, tensor: torch.Tensor) -> torch.Tensor:
    """[places, values of one place]"""
    if way == _LINEAR:
        return tensor.T
    return tensor if way == _ROWS else tensor.reshape(-1, 1)


def _read(layer: Any, expected: Expected) -> torch.Tensor | None:
    """The engine's values at the expected places; None when the layer has no such tensor."""
    places = expected.places
    if expected.way == _ROWS:
        return layer.quant_method.embedding(layer, places.to(layer.weight.device))
    if expected.way == _LINEAR:
        hidden = torch.zeros(len(places), expected.num_inputs, dtype=expected.values.dtype)
        hidden[torch.arange(len(places)), places] = 1.0
        device = next(layer.parameters()).device
        return layer.quant_method.apply(layer, hidden.to(device), None)
    tensor = tensors_of(layer).get(expected.way)
    if tensor is None or (len(places) and int(places.max()) >= tensor.numel()):
        return None
    return tensor.detach().reshape(-1)[places.to(tensor.device)][:, None]


def _num_different(got: torch.Tensor, wanted: torch.Tensor) -> int:
    """Values that differ; -0.0 is 0.0, and so is any subnormal: bfloat16 kernels make zeros of them."""
    tiny = torch.finfo(wanted.dtype).tiny
    got, wanted = got.detach().cpu().double(), wanted.double()
    differ = (got != wanted) & ~((got.abs() < tiny) & (wanted.abs() < tiny))
    return int((differ & ~wanted.isnan()).sum())


def _is_multiplied(layer: nn.Module) -> bool:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    return _is_embedding(layer) or isinstance(getattr(layer, "quant_method", None), UnquantizedLinearMethod)


def _is_embedding(layer: nn.Module) -> bool:
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    return isinstance(getattr(layer, "quant_method", None), UnquantizedEmbeddingMethod)
