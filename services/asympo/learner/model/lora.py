"""LoRA: pairs of small matrices, put in by PEFT, beside linears and experts of a model whose weights stay.

What is trained is float32. The base holds the values that a policy of it holds, those of bfloat16. PEFT makes
the layers and begins them; they compute as `adapted_linear.py` says.
"""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from asympo.common.errors import BadSetting
from asympo.learner.model.adapted_experts import AdaptedExperts, AdaptedStack, expert_matrices
from asympo.learner.model.adapted_linear import AdaptedLinear, AdaptedWeight
from asympo.learner.model.fused import unfuse
from asympo.learner.model.hidden_package import hidden
from asympo.learner.model.quantised_base import QuantisedWeight
from asympo.learner.model.weights import PUBLISHED_DTYPE, is_adapted
from asympo.learner.settings import ALL_LINEAR, LoraSettings
from asympo.local.heap import return_free_pages

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

_ADAPTER = "default"


def add_adapter(model: PreTrainedModel, lora: LoraSettings, *, compute_dtype: torch.dtype, seed: int) -> None:
    """From now on an adapter is all that is trained; the model's forward path is to be applied again.

    Changes nothing that the model says once its weights are rounded. Raises BadSetting.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise BadSetting("the model is quantised: adapters are trained on the one that it was made from")
    written = expert_matrices(model)
    linears, stacks = _chosen(model, lora, stacked={each.parameter for each in written.values()})
    config = import_peft().LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rank_stabilised,
        target_modules=sorted({name.rpartition(".")[2] for name in linears}),
        target_parameters=sorted(stacks) or None,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    unfuse(model)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        with _names_as_they_are():
            import_peft().inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    layers: dict[str, Any] = {_weight_name(name, layer): layer for name, layer in _layers(model)}
    if odd := layers.keys() ^ {f"{name}.weight" for name in linears} ^ stacks:
        raise BadSetting(f"lora.targets do not tell {min(odd)} from other layers of the same name")
    _round(model)
    quantised = {name: _narrowed(layer, lora.base_bits) for name, layer in layers.items()}
    model.base_sha256 = base_digest(model)
    for name, layer in layers.items():
        weight: dict[str, Any] = {
            "base": layer.get_base_layer(),
            "quantised": quantised[name],
            "a": layer.lora_A[_ADAPTER],
            "b": layer.lora_B[_ADAPTER],
            "scale": float(layer.scaling[_ADAPTER]),
            "compute_dtype": compute_dtype,
        }
        if name in stacks:
            own = {file: each for file, each in written.items() if each.parameter == name}
            layer.adapted = AdaptedStack(matrices=own, name=layer.parameter_name, **weight)
        else:
            layer.adapted = layer.forward = AdaptedLinear(**weight)
        model.adapter_scale = layer.adapted.scale
    _compute_experts_merged(model)
    compute_in(model, compute_dtype)
    # The wider weights that were loaded.
    return_free_pages()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """From now on products of an adapted model have factors of that type.

    Linears and embeddings are held in it, where nearly all weights are; what layers add up stays float32.
    """
    bases = set()
    for adapted in adapted_weights(model).values():
        adapted.compute_dtype = dtype
        bases.add(adapted.base)
    for module in model.modules():
        if type(module) not in (nn.Linear, nn.Embedding) or module.weight.requires_grad or module in bases:
            continue
        if dtype.itemsize <= torch.float32.itemsize:
            module.weight.data = module.weight.data.to(dtype)
        if type(module) is nn.Embedding and _in_float32_at_least not in module._forward_hooks.values():
            module.register_forward_hook(_in_float32_at_least)


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


def _chosen(model: PreTrainedModel, lora: LoraSettings, *, stacked: set[str]) -> tuple[set[str], set[str]]:
    """Linears, and parameters that are stacks of matrices."""
    head = model.get_output_embeddings()
    linears = {
        name for name, module in model.named_modules() if type(module) is nn.Linear and module is not head
    }
    found = linears | stacked
    if lora.targets != ALL_LINEAR:
        everything = found
        found = {name for name in found if any(f".{name}".endswith(f".{each}") for each in lora.targets)}
        for each in lora.targets:
            if not any(f".{name}".endswith(f".{each}") for name in found):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in everything}))
                raise BadSetting(f"lora.targets names {each}, and the linears of this model are {known}")
    if not found:
        raise BadSetting(f"{type(model).__name__} has no linears that an adapter could be put beside")
    return found & linears, found & stacked


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
def _round(model: nn.Module) -> None:
    """What is added to a policy's base is trained with that base."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.copy_(parameter.to(PUBLISHED_DTYPE))


def base_digest(model: nn.Module) -> Tensor:
    """Of names and values, without an adapter: what holds only that is compared with it."""
    if is_adapted(model):
        return cast(Tensor, model.base_sha256)
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            digest.update(_without_wrappers(name).encode())
            value = parameter.detach().to(PUBLISHED_DTYPE).cpu().contiguous().view(-1)
            digest.update(value.view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _in_float32_at_least(_module: nn.Module, _given: Any, output: Tensor) -> Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))
