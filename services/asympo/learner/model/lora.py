"""LoRA: pairs of small matrices, put in by PEFT, beside linears and experts of a model whose weights stay.

What is trained is float32. The base holds the values that a policy of it holds, those of bfloat16. PEFT makes
the layers and begins them; they compute as `adapted_weights.py` says.
"""

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from asympo.common.errors import BadModel, BadSetting
from asympo.common.foreign.text import reason_of
from asympo.learner.model.adaptable import WeightPart, parts_in_files, read_by_others, stays_wide
from asympo.learner.model.adapted_weights import (
    AdaptedExperts,
    AdaptedLinear,
    AdaptedStack,
    AdaptedWeight,
)
from asympo.learner.model.fused import unfuse
from asympo.learner.model.hidden_package import hidden
from asympo.learner.model.quantised_base import QuantisedWeight
from asympo.learner.model.weights import PUBLISHED_DTYPE, is_adapted
from asympo.learner.settings import ALL_LINEAR, LoraSettings
from asympo.local.heap import return_free_pages

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

log = logging.getLogger(__name__)

_ADAPTER = "default"


def add_adapter(model: PreTrainedModel, lora: LoraSettings, *, compute_dtype: torch.dtype, seed: int) -> None:
    """From now on an adapter is all that is trained; the model's forward path is to be applied again.

    Changes nothing that the model says once its weights are rounded. Raises BadSetting, BadModel.
    """
    unfuse(model)
    files = _chosen(model, lora)
    model.requires_grad_(False)
    layers = _with_layers(model, files, lora, seed=seed)
    _round(model)
    quantised = {name: _narrowed(layer, lora.base_bits) for name, layer in layers.items()}
    model.base_sha256 = base_digest(model)
    for name, layer in layers.items():
        weight: dict[str, Any] = {
            "base": layer.get_base_layer(),
            "files": files[name],
            "quantised": quantised[name],
            "a": layer.lora_A[_ADAPTER],
            "b": layer.lora_B[_ADAPTER],
            "scale": float(layer.scaling[_ADAPTER]),
            "compute_dtype": compute_dtype,
        }
        if hasattr(layer, "parameter_name"):
            layer.adapted = AdaptedStack(name=layer.parameter_name, **weight)
        else:
            layer.adapted = layer.forward = AdaptedLinear(**weight)
        model.adapter_scale = layer.adapted.scale
    _compute_experts_merged(model)
    compute_in(model, compute_dtype)
    # The wider weights that were loaded.
    return_free_pages()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def compute_in(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """From now on products of an adapted model have factors of that type.

    Linears, embeddings and experts are held in it, where nearly all weights are; what layers add up stays
    float32.
    """
    bases = set()
    for adapted in adapted_weights(model).values():
        adapted.compute_dtype = dtype
        bases.add((adapted.base, adapted.name))
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            is_left = parameter.requires_grad or (module, own) in bases
            if is_left or not _is_narrowed(module, parameter) or stays_wide(model, f"{name}.{own}"):
                continue
            if dtype.itemsize <= torch.float32.itemsize:
                parameter.data = parameter.data.to(dtype)
        if type(module) is nn.Embedding and _in_float32_at_least not in module._forward_hooks.values():
            module.register_forward_hook(_in_float32_at_least)


def _is_narrowed(module: nn.Module, parameter: nn.Parameter) -> bool:
    if type(module) in (nn.Linear, nn.Embedding):
        return parameter.dim() == 2
    # Of convolutions only some kernels take weights of another type than the activations'.
    return parameter.dim() == 3 and not type(module).__name__.startswith("Conv")


def merge_anew(model: nn.Module) -> None:
    """From now on what is merged is not kept: less memory, more arithmetic."""
    for adapted in adapted_weights(model).values():
        adapted.merge_anew()


def prepare_for_shards(model: nn.Module, *, device: torch.device) -> set[nn.Parameter]:
    """Before the base of an adapted model is sharded: the adapter, which stays whole on every rank.

    Raises BadSetting where the base is quantised.
    """
    if is_quantised(model):
        raise BadSetting("lora.base_bits is for a learner of one process: leave it out, ranks share the base")
    merge_anew(model)
    adapter = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
    return adapter


def adapter_config(model: nn.Module) -> "LoraConfig":
    """As PEFT writes it."""
    # PEFT sets the attribute without declaring it.
    config: LoraConfig = model.peft_config[_ADAPTER]  # type: ignore[index,assignment]
    return config


def is_quantised(model: nn.Module) -> bool:
    """Whether an adapter's base is held in fewer bits, and so has other values than the model had."""
    return any(adapted.quantised is not None for adapted in adapted_weights(model).values())


def adapts(name: str) -> bool:
    """Whether a matrix of an adapter is one that is zero at the beginning, so that nothing is added."""
    return ".lora_B." in name


def adapted_weights(model: nn.Module) -> dict[str, AdaptedWeight]:
    """All that have matrices beside them, by their name in the model without an adapter."""
    return {_weight_name(name, layer): cast(Any, layer).adapted for name, layer in _layers(model)}


def _chosen(model: PreTrainedModel, lora: LoraSettings) -> dict[str, dict[str, WeightPart]]:
    """Weights that get matrices, by name, and what their parts are called in files."""
    head = model.get_output_embeddings()
    linears = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module is not head
    }
    holders = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    # What is beside a weight in one layer would be missing in others that have the same one.
    shared = {name for name, each in model.named_parameters() if holders[id(each)] > 1}
    files: dict[str, dict[str, WeightPart]] = {}
    for file, part in parts_in_files(model).items():
        is_ours = part.parameter in linears or part.expert is not None
        if is_ours and part.parameter not in shared and not stays_wide(model, part.parameter):
            files.setdefault(part.parameter, {})[file] = part
    tried = {_module(name) for name in files.keys() & linears}
    for name in read_by_others(model, tried) | {each for each in tried if _is_refused_by_peft(model, each)}:
        del files[f"{name}.weight"]
    found, wanted = files, linears
    if lora.targets != ALL_LINEAR:
        found = {name: parts for name, parts in files.items() if _is_named(name, lora.targets)}
        wanted = {name for name in linears if _is_named(name, lora.targets)}
        for each in lora.targets:
            if not any(_is_named(name, (each,)) for name in found):
                is_there = any(_is_named(name, (each,)) for name, _ in model.named_modules())
                known = ", ".join(sorted({_leaf(_module(name)) for name in files}))
                why = "which cannot have an adapter" if is_there else "which this model has not"
                raise BadSetting(f"lora.targets names {each}, {why}: those that can are {known}")
    if left_out := {_leaf(_module(name)) for name in wanted - files.keys()}:
        log.info("No adapter beside some linears of these names: %s", ", ".join(sorted(left_out)))
    if not found:
        raise BadSetting(f"{type(model).__name__} has no linears that an adapter could be put beside")
    return found


def _is_named(name: str, targets: Collection[str]) -> bool:
    return any(f".{_module(name)}".endswith(f".{each}") for each in targets)


def _module(name: str) -> str:
    """Of a linear's weight the linear, of a stack itself."""
    return name.removesuffix(".weight")


def _is_refused_by_peft(model: PreTrainedModel, linear: str) -> bool:
    """As of state-space layers, some of whose kernels take the weight past what stands beside it."""
    peft = import_peft()
    try:
        peft.tuners.tuners_utils._check_lora_target_modules_mamba(peft.LoraConfig(), model, _leaf(linear))
    except ValueError:
        return True
    return False


def _with_layers(
    model: PreTrainedModel, files: Mapping[str, Any], lora: LoraSettings, *, seed: int
) -> dict[str, Any]:
    """PEFT's layers, by the name of their weight."""
    linears = {_module(name) for name in files if name.endswith(".weight")}
    endings = set(map(_leaf, linears))
    is_told_apart = all(name in linears or _leaf(name) not in endings for name, _ in model.named_modules())
    config = import_peft().LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rank_stabilised,
        target_modules=sorted(endings if is_told_apart else linears),
        target_parameters=sorted(name for name in files if not name.endswith(".weight")) or None,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _names_as_they_are():
        torch.manual_seed(seed)
        try:
            import_peft().inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
        except ValueError as error:
            raise BadModel(
                f"PEFT cannot put an adapter into {type(model).__name__}: {reason_of(error)}"
            ) from error
    layers: dict[str, Any] = {_weight_name(name, layer): layer for name, layer in _layers(model)}
    if odd := layers.keys() ^ files.keys():
        raise BadModel(f"PEFT does not tell {min(odd)} from other layers of {type(model).__name__}")
    return layers


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _compute_experts_merged(model: nn.Module) -> None:
    """PEFT wraps a module once for each of its stacks: the outermost one computes."""
    stacks: dict[nn.Module, list[AdaptedStack]] = {}
    outermost: dict[nn.Module, Any] = {}
    for _, layer in _layers(model):
        adapted = cast(Any, layer).adapted
        if isinstance(adapted, AdaptedStack):
            stacks.setdefault(adapted.base, []).append(adapted)
            outermost.setdefault(adapted.base, layer)
    for experts, layer in outermost.items():
        layer.forward = AdaptedExperts(stacks[experts])


@functools.cache
def import_peft() -> ModuleType:
    """PEFT without bitsandbytes, which it would import: that takes a second and 50 MB."""
    with hidden("bitsandbytes"):
        import peft
        import peft.tuners.lora

        # It looks once, and not before the first layer is wrapped.
        peft.import_utils.is_bnb_available()
    return peft


@contextmanager
def _names_as_they_are() -> Iterator[None]:
    """PEFT would take names of linears for those that experts had before they were stacked."""
    from peft.utils import transformers_weight_conversion as conversion

    own = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = own


def _layers(model: nn.Module) -> Iterator[tuple[str, "LoraLayer"]]:
    kind = import_peft().tuners.lora.LoraLayer
    for name, module in model.named_modules():
        if isinstance(module, kind):
            yield name, module


def _weight_name(name: str, layer: "LoraLayer") -> str:
    """Of the weight that a layer of PEFT adapts, without an adapter."""
    return f"{_without_wrappers(name)}.{getattr(layer, 'parameter_name', 'weight')}"


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "base_layer")


def quantised_values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The base's weights that are held in fewer bits, by name, with the values that are computed with."""
    for name, adapted in adapted_weights(model).items():
        if adapted.quantised is not None:
            yield name, adapted.quantised.values()


def _narrowed(layer: Any, bits: int | None) -> QuantisedWeight | None:
    """From now on the weight has bfloat16 values, those that so many bits hold."""
    weight = layer.get_base_layer().get_parameter(getattr(layer, "parameter_name", "weight"))
    quantised = None if bits is None else QuantisedWeight(weight.detach(), bits=bits)
    weight.data = weight.data.to(PUBLISHED_DTYPE) if quantised is None else quantised.values()
    return quantised


@torch.no_grad()
def _round(model: PreTrainedModel) -> None:
    """What is added to a policy's base is trained with that base."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and not stays_wide(model, _without_wrappers(name)):
            parameter.copy_(parameter.to(PUBLISHED_DTYPE))


def base_digest(model: PreTrainedModel) -> Tensor:
    """Of names and values, without an adapter: what holds only that is compared with it."""
    if is_adapted(model):
        return cast(Tensor, model.base_sha256)
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            own = _without_wrappers(name)
            dtype = torch.float32 if stays_wide(model, own) else PUBLISHED_DTYPE
            digest.update(own.encode())
            value = parameter.detach().to(dtype).cpu().contiguous().view(-1)
            digest.update(value.view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _in_float32_at_least(_module: nn.Module, _given: Any, output: Tensor) -> Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))
