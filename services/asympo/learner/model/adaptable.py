"""Which weights of a model can have an adapter: those that its files hold in bfloat16, whole or in parts.

Files of most families hold the matrices of experts one by one where the model has them stacked, and some call
linears otherwise than the model does. An adapter is published, and merged, under the names of files.
"""

import bisect
import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from asympo.common.errors import BadModel
from asympo.common.foreign.text import reason_of
from asympo.learner.model.miniature import FAMILY_ERRORS
from asympo.learner.model.weights import PUBLISHED_DTYPE


@dataclass(frozen=True, kw_only=True)
class WeightPart:
    """A tensor of a model's files, by where it is in the model."""

    parameter: str
    rows: slice
    expert: int | None = None
    """Of a stack."""

    def of(self, weight: Tensor) -> Tensor:
        """A view of the parameter, or of a matrix beside it that has its rows."""
        return weight[self.rows] if self.expert is None else weight[self.expert, self.rows]


def parts_in_files(model: PreTrainedModel) -> dict[str, WeightPart]:
    """Every tensor of files that is some rows of a matrix or of a stack, by its name in files.

    Of a model without an adapter. Weights of which files hold anything else are not among them: those that
    are transposed, interleaved, or held whole as a stack.
    """
    shapes = {name: each.shape for name, each in model.named_parameters() if each.dim() in (2, 3)}
    numbers, first = {}, 0
    for name, shape in shapes.items():
        num_rows = shape[:-1].numel()
        # Two columns: what takes stacks apart drops a dimension of one.
        numbers[name] = _numbers(first, num_rows).reshape(*shape[:-1], 2)
        first += num_rows
    starts = [int(each.flatten()[0]) for each in numbers.values()]
    found: dict[str, dict[str, WeightPart]] = {}
    for file, rows in _written(model, numbers).items():
        if rows.dim() != 2 or not file.endswith(".weight") or not len(rows):
            continue
        index = bisect.bisect_right(starts, int(rows[0, 0])) - 1
        name = list(shapes)[index]
        part = _part(rows, name=name, shape=shapes[name], start=starts[index])
        if part is not None:
            found.setdefault(name, {})[file] = part
    whole = {
        name: parts
        for name, parts in found.items()
        if sum(part.rows.stop - part.rows.start for part in parts.values()) == shapes[name][:-1].numel()
    }
    return {file: part for parts in whole.values() for file, part in parts.items()}


def stays_wide(model: PreTrainedModel, name: str) -> bool:
    """Whether policies hold a parameter in float32, by the model's own rules."""
    held: Any = model
    if not hasattr(held, "wide_parameters"):
        patterns = [each.replace("*", ".*") for each in model._get_dtype_plan(PUBLISHED_DTYPE)]
        with torch.device("meta"):
            empty = type(model)._from_config(copy.deepcopy(model.config), dtype=PUBLISHED_DTYPE)
        held.wide_parameters = {
            name
            for name, each in empty.named_parameters()
            if each.dtype != PUBLISHED_DTYPE or any(re.search(pattern, name) for pattern in patterns)
        }
    return name in held.wide_parameters


@torch.no_grad()
def read_by_others(model: PreTrainedModel, linears: Iterable[str]) -> set[str]:
    """Linears whose weight the module around them computes with, past what stands beside it.

    Found by a small forward; the model has its own attention from then on. Raises BadModel where it has none.
    """
    seen: set[str] = set()
    try:
        with _watched(model, linears, seen):
            model.set_attn_implementation("eager")
            ids = torch.arange(3, device=next(model.parameters()).device)[None]
            model(input_ids=ids, use_cache=False)
    except Exception as error:
        raise BadModel(f"{type(model).__name__} cannot have an adapter: {reason_of(error)}") from error
    return seen


class _ReadWeight(Tensor):
    """Notes its linear when another tensor is computed from it; type, shape and device may be asked for."""

    linear: str
    seen: set[str]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            for each in tree_leaves((args, kwargs)):
                if isinstance(each, cls):
                    each.seen.add(each.linear)
        return result


class _WatchedLinear(nn.Linear):
    """Computes as a linear; whoever else takes its weight gets one that tells."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._own_weight(), self._parameters["bias"])

    def _own_weight(self) -> Tensor:
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # torch declares it as an attribute
        told = self._own_weight().detach().as_subclass(_ReadWeight)
        told.linear, told.seen = self.__dict__["watched_as"], self.__dict__["seen"]
        return told


@contextmanager
def _watched(model: nn.Module, linears: Iterable[str], seen: set[str]) -> Iterator[None]:
    modules = {name: model.get_submodule(name) for name in linears}
    for name, module in modules.items():
        module.__class__ = _WatchedLinear
        module.__dict__.update(watched_as=name, seen=seen)
    try:
        yield
    finally:
        for module in modules.values():
            module.__class__ = nn.Linear
            del module.__dict__["watched_as"], module.__dict__["seen"]


def _written(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As files hold them. Where some cannot be taken apart, those that can."""
    try:
        return dict(revert_weight_conversion(model, dict(tensors)))
    except FAMILY_ERRORS:
        written: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            try:
                written.update(revert_weight_conversion(model, {name: tensor}))
            except FAMILY_ERRORS:
                # It is not written by rows.
                continue
        return written


def _part(rows: Tensor, *, name: str, shape: torch.Size, start: int) -> WeightPart | None:
    """None where they are not consecutive rows of one matrix."""
    first, num_rows = int(rows[0, 0]) - start, shape[-2]
    expert, row = divmod(first, num_rows)
    if row + len(rows) > num_rows or not torch.equal(rows, _numbers(start + first, len(rows))):
        return None
    part = slice(row, row + len(rows))
    return WeightPart(parameter=name, rows=part, expert=expert if len(shape) == 3 else None)


def _numbers(first: int, num_rows: int) -> Tensor:
    numbers = torch.arange(first, first + num_rows, dtype=torch.int32, device="cpu")
    return numbers.reshape(-1, 1).repeat(1, 2)
