"""Faults of a reload, made on order inside the worker, for `asympo bench reload` and the tests to catch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from asympo.engines import vllm_worker
from asympo.engines.vllm_readback import file_tensors

if TYPE_CHECKING:
    from torch import nn

Weights = Iterator[tuple[str, torch.Tensor]]

WORKER_EXTENSION = f"{__name__}.FaultyWorkerExtension"

FAULTS = (
    "nothing_changed",
    "tied_head_stale",
    "whole_tensor_missing",
    "fused_tensor_missing",
    "tensor_of_parent",
    "fused_tensor_of_parent",
    "layers_swapped",
    "key_and_value_swapped",
    "gate_and_up_swapped",
    "packed_copy_stale",
    "half_of_the_rows_stale",
    "embedding_stale",
    "norm_off_by_one_bit",
    "read_as_another_dtype",
    "rounded_to_8_bits",
    "signs_lost",
    "experts_unpacked",
    "expert_of_parent",
)


class FaultyWorkerExtension(vllm_worker.PolicyWorkerExtension):
    """The product's worker extension, with one fault for the next load."""

    _fault: str | None = None
    _before: dict[str, torch.Tensor]

    def inject(self, fault: str | None) -> None:
        """Make this fault at the next load; None for none."""
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"there is no fault {fault!r}; there are {', '.join(FAULTS)}")
        self._fault = fault

    def _load(self, path: str, weights: Weights) -> None:
        before = self._loaded_path or Path(self.vllm_config.model_config.model)
        self._before = dict(file_tensors(before)) if self._fault else {}
        super()._load(path, weights)
        self._fault = None

    def replace_weights(self, model: nn.Module, weights: Weights) -> set[str] | None:
        fault = self._fault
        if fault == "nothing_changed":
            for _ in weights:
                pass
            return None
        if fault == "experts_unpacked":
            with _replaced(vllm_worker, "as_first_load", contextlib.nullcontext):
                return super().replace_weights(model, weights)
        if fault in _IN_THE_FILE:
            # Between the check against the manifest and the loader.
            weights = _IN_THE_FILE[fault](weights, self._before)
        restore = _IN_THE_ENGINE[fault](model) if fault in _IN_THE_ENGINE else None
        loaded = super().replace_weights(model, weights)
        if restore is not None:
            restore()
        return loaded

    def refresh_tied_layers(
        self, model: nn.Module, ties: Sequence[Sequence[str]], loaded: set[str] | None
    ) -> None:
        if self._fault not in ("tied_head_stale", "nothing_changed"):
            super().refresh_tied_layers(model, ties, loaded)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


# --- in the file: what the loader is handed ---------------------------------------------------------------


def _dropped(pattern: str) -> Callable[[Weights, dict[str, torch.Tensor]], Weights]:
    def drop(weights: Weights, before: dict[str, torch.Tensor]) -> Weights:
        return ((name, tensor) for name, tensor in weights if not re.search(pattern, name))

    return drop


def _of_parent(pattern: str) -> Callable[[Weights, dict[str, torch.Tensor]], Weights]:
    def change(weights: Weights, before: dict[str, torch.Tensor]) -> Weights:
        for name, tensor in weights:
            yield name, before[name] if re.search(pattern, name) else tensor

    return change


def _swapped(pattern: str, one: str, other: str) -> Callable[[Weights, dict[str, torch.Tensor]], Weights]:
    """The names of two tensors exchanged, where they have the same shape."""

    def swap(weights: Weights, before: dict[str, torch.Tensor]) -> Weights:
        for name, tensor in weights:
            partner = name.replace(one, other) if one in name else name.replace(other, one)
            is_pair = re.search(pattern, name) and partner in before
            yield partner if is_pair and before[partner].shape == tensor.shape else name, tensor

    return swap


def _each(pattern: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def changed(weights: Weights, before: dict[str, torch.Tensor]) -> Weights:
        for name, tensor in weights:
            yield name, change(tensor) if re.search(pattern, name) else tensor

    return changed


def _next_bit(tensor: torch.Tensor) -> torch.Tensor:
    bits = tensor.clone().view(torch.int16)
    bits.view(-1)[-1] += 1
    return bits.view(tensor.dtype)


_IN_THE_FILE: dict[str, Callable[[Weights, dict[str, torch.Tensor]], Weights]] = {
    "whole_tensor_missing": _dropped(r"layers\.1\..*o_proj\.weight"),
    "fused_tensor_missing": _dropped(r"layers\.1\..*k_proj\.weight"),
    "tensor_of_parent": _of_parent(r"layers\.1\..*o_proj\.weight"),
    "fused_tensor_of_parent": _of_parent(r"layers\.1\..*k_proj\.weight"),
    "expert_of_parent": _of_parent(r"layers\.1\..*experts\.1\.(w1|gate_proj)\.weight"),
    "layers_swapped": _swapped(r"o_proj", "layers.0.", "layers.1."),
    "key_and_value_swapped": _swapped(r"layers\.0\..*[kv]_proj", "k_proj", "v_proj"),
    "gate_and_up_swapped": _swapped(r"layers\.0\..*mlp\.(gate|up)_proj", "gate_proj", "up_proj"),
    "norm_off_by_one_bit": _each(r"layers\.1\.input_layernorm", _next_bit),
    "read_as_another_dtype": _each(
        r"layers\.0\..*o_proj\.weight", lambda tensor: tensor.view(torch.float16).to(tensor.dtype)
    ),
    "rounded_to_8_bits": _each(
        r"layers\.0\..*o_proj\.weight", lambda tensor: tensor.to(torch.float8_e4m3fn).to(tensor.dtype)
    ),
    "signs_lost": _each(r"layers\.0\..*o_proj\.weight", torch.abs),
}


# --- in the engine: what stays behind when everything was handed over --------------------------------------


def _projection(model: nn.Module) -> Any:
    return next(
        module for name, module in model.named_modules() if name.endswith("layers.1.self_attn.o_proj")
    )


def _keep_packed_copy(model: nn.Module) -> Callable[[], None]:
    layer = _projection(model)
    if hasattr(layer, "cpu_linear"):
        kernel = layer.cpu_linear
        return lambda: setattr(layer, "cpu_linear", kernel)
    weight = layer.weight.data.clone()
    return lambda: layer.weight.data.copy_(weight)


def _keep_half_of_the_rows(model: nn.Module) -> Callable[[], None]:
    """The first half of the outputs goes on coming from the old weights."""
    layer = _projection(model)
    former, old_weight = getattr(layer, "cpu_linear", None), layer.weight.data.clone()

    def restore() -> None:
        if former is None:
            layer.weight.data[::2] = old_weight[::2]
            return
        renewed = layer.cpu_linear

        def mixed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            output = renewed(x, weight, bias)
            output[..., ::2] = former(x, weight, bias)[..., ::2]
            return output

        layer.cpu_linear = mixed

    return restore


def _keep_embedding(model: nn.Module) -> Callable[[], None]:
    layer: Any = next(module for name, module in model.named_modules() if name.endswith("embed_tokens"))
    weight = layer.weight.data.clone()
    return lambda: layer.weight.data.copy_(weight)


_IN_THE_ENGINE: dict[str, Callable[[nn.Module], Callable[[], None]]] = {
    "packed_copy_stale": _keep_packed_copy,
    "half_of_the_rows_stale": _keep_half_of_the_rows,
    "embedding_stale": _keep_embedding,
}
