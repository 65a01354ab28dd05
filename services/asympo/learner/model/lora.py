"""LoRA: pairs of small matrices, put in by PEFT, beside the linears of a model whose own weights stay.

What is trained is float32. The base holds the values that a policy of it holds, those of bfloat16. PEFT makes
the layers and begins them; their forward is written here, because PEFT's own computes another policy than the
merged one that is served, and passes over every activation several times more.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from asympo.common.errors import BadSetting
from asympo.learner.model.fused import unfuse
from asympo.learner.model.weights import is_adapted
from asympo.learner.settings import ALL_LINEAR, LoraSettings

_ADAPTER = "default"
_PUBLISHED_DTYPE = torch.bfloat16


def add_adapter(model: PreTrainedModel, lora: LoraSettings, *, compute_dtype: torch.dtype, seed: int) -> None:
    """From now on an adapter is all that is trained; the model's forward path is to be applied again.

    Changes nothing that the model says once its weights are rounded. Raises BadSetting.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        raise BadSetting("the model is quantised: adapters are trained on the one that it was made from")
    chosen = _chosen(model, lora)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rank_stabilised,
        target_modules=sorted({name.rpartition(".")[2] for name in chosen}),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    unfuse(model)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    layers: dict[str, Any] = dict(_layers(model))
    if odd := layers.keys() ^ chosen:
        raise BadSetting(f"lora.targets do not tell {min(odd)} from other layers of the same name")
    _round(model)
    model.base_sha256 = base_digest(model)
    for layer in layers.values():
        base = layer.get_base_layer()
        base.weight.data = base.weight.data.to(_PUBLISHED_DTYPE)
        layer.forward = _Forward(layer, compute_dtype)
        model.adapter_scale = layer.forward.scale
    if compute_dtype.itemsize < torch.float32.itemsize:
        _narrow(model, compute_dtype)


def merge_anew(model: nn.Module) -> None:
    """From now on what is merged is not kept: less memory, more arithmetic."""
    for _, layer in _layers(model):
        cast(Any, layer).forward.keeps_merged = False


def prepare_for_shards(model: nn.Module, *, device: torch.device) -> set[nn.Parameter]:
    """Before the base of an adapted model is sharded: the adapter, which stays whole on every rank."""
    merge_anew(model)
    adapter = {parameter for parameter in model.parameters() if parameter.requires_grad}
    for parameter in adapter:
        parameter.data = parameter.data.to(device)
    return adapter


def adapter_config(model: nn.Module) -> LoraConfig:
    """As PEFT writes it."""
    # PEFT sets the attribute without declaring it.
    config: LoraConfig = model.peft_config[_ADAPTER]  # type: ignore[index,assignment]
    return config


def adapts(name: str) -> bool:
    """Whether a matrix of an adapter is one that is zero at the beginning, so that nothing is added."""
    return ".lora_B." in name


def name_in_peft(name: str) -> str:
    """How a matrix of an adapter is called in files, by its name in the model."""
    return f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}"


def _chosen(model: PreTrainedModel, lora: LoraSettings) -> set[str]:
    head = model.get_output_embeddings()
    linears = {
        name for name, module in model.named_modules() if type(module) is nn.Linear and module is not head
    }
    if lora.targets == ALL_LINEAR:
        found = linears
    else:
        found = {name for name in linears if any(f".{name}".endswith(f".{each}") for each in lora.targets)}
        for each in lora.targets:
            if not any(f".{name}".endswith(f".{each}") for name in found):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
                raise BadSetting(f"lora.targets names {each}, and the linears of this model are {known}")
    if not found:
        raise BadSetting(f"{type(model).__name__} has no linears that an adapter could be put beside")
    return found


def _layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


@torch.no_grad()
def _round(model: nn.Module) -> None:
    """What is added to a policy's base is trained with that base."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.copy_(parameter.to(_PUBLISHED_DTYPE))


def base_digest(model: nn.Module) -> Tensor:
    """Of names and values, without an adapter: what holds only that is compared with it."""
    if is_adapted(model):
        return cast(Tensor, model.base_sha256)
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            digest.update(name.replace(".base_layer.", ".").encode())
            value = parameter.detach().to(_PUBLISHED_DTYPE).cpu().contiguous().view(-1)
            digest.update(value.view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _narrow(model: nn.Module, dtype: torch.dtype) -> None:
    """Of linears and embeddings, where nearly all weights are; what layers add up stays float32."""
    for module in model.modules():
        if type(module) not in (nn.Linear, nn.Embedding) or module.weight.requires_grad:
            continue
        module.weight.data = module.weight.data.to(dtype)
        if type(module) is nn.Embedding:
            module.register_forward_hook(lambda _module, _given, output: output.float())


class _Forward:
    """Forward of one of PEFT's layers: at the merged weight that generators serve.

    Most of what an adapter adds is less than the distance between two bfloat16 numbers. A gradient at the sum
    before it is rounded would improve a policy that nobody samples from.
    """

    def __init__(self, layer: LoraLayer, compute_dtype: torch.dtype) -> None:
        self._base = cast(Any, layer.get_base_layer())
        self._a: nn.Module = layer.lora_A[_ADAPTER]
        self._b: nn.Module = layer.lora_B[_ADAPTER]
        self.scale = float(layer.scaling[_ADAPTER])
        self.keeps_merged = True
        """Off where the base is whole only while a layer computes: the merged one would be whole for good."""
        self._compute_dtype = compute_dtype
        self._merged: Tensor | None = None
        self._merged_of: tuple[Tensor, Tensor] | None = None
        """The matrices that were merged last. Held, so that no others can lie where they lie."""
        self._merged_at = (-1, -1)

    def __call__(self, x: Tensor) -> Tensor:
        a_RD, b_FR = cast(Tensor, self._a.weight), cast(Tensor, self._b.weight)
        # torch declares no types for `apply`.
        output: Tensor = _Product.apply(x, self._base.bias, a_RD, b_FR, self)  # type: ignore[no-untyped-call]
        return output

    def merged(self, a_RD: Tensor, b_FR: Tensor) -> Tensor:
        """The weight with the adapter, rounded; of these matrices."""
        of = (a_RD.detach(), b_FR.detach())
        if not self.keeps_merged:
            return self._merge(*of).to(self._compute_dtype)
        if self._merged is None:
            self._merged = torch.empty_like(self._base.weight, dtype=self._compute_dtype)
        # Whoever changes a parameter in place counts its version up; for the optimizer `guarded_step` does.
        # Probes are scored with others in their place, whose versions begin anew.
        version = (a_RD._version, b_FR._version)
        if self._merged_at != version or not _are_same(self._merged_of, of):
            self._merged.copy_(self._merge(*of))
            self._merged_at, self._merged_of = version, of
        return self._merged

    def _merge(self, a_RD: Tensor, b_FR: Tensor) -> Tensor:
        """As `common/checkpoints/merge.py` does, up to the order of a sum before it is rounded."""
        wide = torch.promote_types(_PUBLISHED_DTYPE, torch.float32)
        # In a forward pass autocast would round the product's factors and the product itself.
        with torch.autocast(a_RD.device.type, enabled=False):
            product_FD = _rounded(b_FR, wide).mul_(self.scale) @ _rounded(a_RD, wide)
        product_FD += self._base.weight.detach()
        return product_FD.to(_PUBLISHED_DTYPE)


class _Product(torch.autograd.Function):
    """x W' + bias, where W = W0 + scale B A is merged; with gradients of x, A and B alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias_F: Tensor | None,
        a_RD: Tensor,
        b_FR: Tensor,
        layer: _Forward,
    ) -> Tensor:
        merged_FD = layer.merged(a_RD, b_FR)
        x_TD = x.reshape(-1, x.shape[-1]).to(merged_FD.dtype)
        bias_F = None if bias_F is None else bias_F.to(merged_FD.dtype)
        output_TF = nn.functional.linear(x_TD, merged_FD, bias_F)
        # Not what is merged: kept, it is the layer's own, and otherwise it would be kept until the backward.
        ctx.save_for_backward(x_TD, a_RD, b_FR)
        ctx.layer, ctx.x_dtype = layer, x.dtype
        # Not as a view: some layers add to it in place.
        output: Tensor = torch.ops.aten._unsafe_view(output_TF, (*x.shape[:-1], output_TF.shape[-1]))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, a_RD, b_FR = ctx.saved_tensors
        grad_TF = grad.reshape(-1, grad.shape[-1])
        inner_TR = x_TD @ _rounded(a_RD, x_TD.dtype).T
        grad_inner_TR = grad_TF @ _rounded(b_FR, x_TD.dtype)
        grad_a_RD = (grad_inner_TR.T @ x_TD).to(a_RD.dtype).mul_(ctx.layer.scale)
        grad_b_FR = (grad_TF.T @ inner_TR).to(b_FR.dtype).mul_(ctx.layer.scale)
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_TF @ ctx.layer.merged(a_RD, b_FR)).to(ctx.x_dtype).view(*grad.shape[:-1], -1)
        return grad_x, None, grad_a_RD, grad_b_FR, None


def _are_same(held: tuple[Tensor, Tensor] | None, of: tuple[Tensor, Tensor]) -> bool:
    return held is not None and all(a.is_set_to(b) for a, b in zip(held, of, strict=True))


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """As it is published, in a tensor of its own."""
    return value.to(_PUBLISHED_DTYPE).to(dtype, copy=True)
