"""A second copy of the served model without weights: what a checkpoint must look like inside the engine.

A checkpoint goes through vLLM's own loader (names, fused projections, slices of tensor parallelism) into one
layer at a time, which is handed over complete and then forgotten. The engine's own model is never touched.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

Take = Callable[[str, nn.Module], None]
"""Called with the name of a layer and the layer, while it holds all that the checkpoint has for it."""
_LOADER = "vllm.model_executor.models.utils"
"""The logger that warns of every tensor whose type is not the layer's own: marks are bytes."""


class Blueprint:
    """The model's layers as vLLM builds them for this worker, filled by one checkpoint after another."""

    def __init__(self, vllm_config: Any) -> None:
        from vllm.model_executor.model_loader.utils import initialize_model
        from vllm.utils.torch_utils import set_default_torch_dtype

        config = copy.copy(vllm_config)
        # Attention layers enter themselves here, once for each name.
        config.compilation_config = copy.copy(vllm_config.compilation_config)
        config.compilation_config.static_forward_context = {}
        with set_default_torch_dtype(config.model_config.dtype), torch.device("cpu"):
            self.model: nn.Module = initialize_model(config, model_config=config.model_config)
        self._config = config
        self._layers = {
            name: module for name, module in self.model.named_modules() if _has_parameters(module)
        }
        self._owners: dict[nn.Parameter, list[str]] = {}
        for name, layer in self._layers.items():
            for parameter in _parameters(layer).values():
                self._owners.setdefault(parameter, []).append(name)
        self._shapes = {parameter: parameter.shape for parameter in self._owners}
        self._kept = _read_later(self.model)
        self._fill = 0.0
        self._dtype: torch.dtype | None = None
        self._dtypes = {parameter: parameter.dtype for parameter in self._owners}
        self._num_loaded: dict[nn.Parameter, int] = {}
        self._take: Take = _nothing
        for parameter in self._owners:
            parameter.requires_grad_(False)
            self._watch(parameter)
            self._forget(parameter)

    @property
    def parameter_names(self) -> set[str]:
        """Names of the parameters that a checkpoint fills; derived ones come later and are not among them."""
        return {name for name, _ in self.model.named_parameters()}

    @torch.no_grad()
    def fill(
        self,
        weights: Iterable[tuple[str, torch.Tensor]],
        take: Take,
        *,
        background: float,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Send `weights` through the loader; `take` gets each layer once, those of deferred processing last.

        Whatever no tensor reaches stays `background`. With `dtype`, layers hold that instead of their own.
        """
        self._fill, self._dtype, self._take, self._num_loaded = background, dtype, take, {}
        self._taken: set[str] = set()
        try:
            with _without_warnings(_LOADER) if dtype is not None else nullcontext():
                self.model.load_weights(weights)  # type: ignore[operator]
            for name in self._layers:
                self._hand_over(name)
            for name, module in self.model.named_modules():
                if name not in self._taken and _is_deferred(module):
                    for parameter in module.parameters():
                        if parameter not in self._num_loaded:
                            self._materialize(parameter)
                    take(name, module)
        finally:
            self._take = _nothing
            for parameter in self._owners:
                self._forget(parameter)

    @contextmanager
    def processed(self, layer: nn.Module) -> Iterator[None]:
        """`layer` as vLLM makes it after a first load, packed and with what is derived; undone at the end."""
        parameters, buffers = dict(layer._parameters), dict(layer._buffers)
        attributes = dict(layer.__dict__)
        method = getattr(layer, "quant_method", None)
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(self._dtypes[parameter])
        try:
            with as_first_load(layer):
                if _is_deferred(layer):
                    layer.process_weights_after_loading(self._config.model_config.dtype)  # type: ignore[operator]
                elif method is not None:
                    method.process_weights_after_loading(layer)
                yield
        finally:
            for name in set(layer.__dict__) - set(attributes):
                delattr(layer, name)
            layer.__dict__.update(attributes)
            layer._parameters.clear()
            layer._parameters.update(parameters)
            layer._buffers.clear()
            layer._buffers.update(buffers)

    def _watch(self, parameter: Any) -> None:
        from vllm.model_executor.model_loader.reload.meta import get_numel_loaded
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        loader = getattr(parameter, "weight_loader", default_weight_loader)
        signature = inspect.signature(loader)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if parameter not in self._num_loaded:
                self._num_loaded[parameter] = 0
                self._materialize(parameter)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            num_loaded, result = get_numel_loaded(loader, bound)
            self._num_loaded[parameter] += num_loaded
            for name in self._owners[parameter]:
                if self._is_complete(self._layers[name]):
                    self._hand_over(name)
            return result

        parameter.weight_loader = watched

    def _is_complete(self, layer: nn.Module) -> bool:
        return all(
            self._num_loaded.get(parameter, 0) >= self._shapes[parameter].numel()
            for parameter in _parameters(layer).values()
        )

    def _hand_over(self, name: str) -> None:
        layer = self._layers[name]
        if name in self._taken:
            return
        self._taken.add(name)
        if any(parameter in self._num_loaded for parameter in _parameters(layer).values()):
            for parameter in _parameters(layer).values():
                if parameter not in self._num_loaded:
                    self._materialize(parameter)
            self._take(name, layer)
        for parameter in _parameters(layer).values():
            if parameter not in self._kept and self._taken.issuperset(self._owners[parameter]):
                self._forget(parameter)

    def _materialize(self, parameter: nn.Parameter) -> None:
        dtype = self._dtype or self._dtypes[parameter]
        parameter.data = torch.full(self._shapes[parameter], self._fill, dtype=dtype)

    def _forget(self, parameter: nn.Parameter) -> None:
        parameter.data = torch.empty(0, dtype=self._dtypes[parameter])


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def as_first_load(model: nn.Module) -> Iterator[None]:
    """vLLM's experts pack their weights only while they have no kernel, which is at the first load.

    A reload would leave them unpacked, and a packed kernel would read them. The kernel that was there comes
    back at the end: it holds the addresses that captured graphs use.
    """
    kept = []
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            kept.append((method, method.moe_kernel, method.moe_quant_config))
            method.moe_kernel = None
    try:
        yield
    finally:
        for method, kernel, config in kept:
            method.moe_kernel, method.moe_quant_config = kernel, config


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module._parameters.items() if parameter is not None}


def _has_parameters(module: nn.Module) -> bool:
    return bool(_parameters(module))


def _is_deferred(module: nn.Module) -> bool:
    from vllm.model_executor.layers.attention import is_deferred_attention_layer

    return bool(is_deferred_attention_layer(module))


def _read_later(model: nn.Module) -> set[nn.Parameter]:
    """Parameters of layers that attention derives matrices from once all others are loaded."""
    return {
        parameter
        for module in model.modules()
        if _is_deferred(module)
        for child in module.modules()
        for parameter in _parameters(child).values()
    }


def _nothing(name: str, layer: nn.Module) -> None:
    """Between two checkpoints."""
