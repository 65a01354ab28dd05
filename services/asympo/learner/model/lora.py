"""LoRA: pairs of small matrices, put in by PEFT, beside the linears of a model whose own weights stay.

What is trained is float32. The base holds the values that a policy of it holds, those of bfloat16, and keeps
its linears and embeddings in the precision of products. PEFT makes the layers and begins them; their forward
is written here, because PEFT's own passes over every activation several times more.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from asympo.common.errors import BadSetting
from asympo.learner.model.fused import unfuse
from asympo.learner.settings import ALL_LINEAR, LoraSettings

_ADAPTER = "default"
_BASE_DTYPE = torch.bfloat16


def add_adapter(model: PreTrainedModel, lora: LoraSettings, *, compute_dtype: torch.dtype, seed: int) -> None:
    """From now on an adapter is all that is trained; the model's forward path is to be applied again.

    Changes nothing that the model says once its weights are rounded. Raises BadSetting.
    """
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
    layers = dict(_layers(model))
    if odd := layers.keys() ^ chosen:
        raise BadSetting(f"lora.targets do not tell {min(odd)} from other layers of the same name")
    _round(model)
    model.base_sha256 = _base_digest(model)
    if compute_dtype.itemsize < torch.float32.itemsize:
        _narrow(model, compute_dtype)
    for layer in layers.values():
        layer.forward = _Forward(layer)  # type: ignore[attr-defined]


def adapter_config(model: nn.Module) -> LoraConfig:
    """As PEFT writes it."""
    config: LoraConfig = model.peft_config[_ADAPTER]  # type: ignore[index,assignment]
    return config


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
            parameter.copy_(parameter.to(_BASE_DTYPE))


def _base_digest(model: nn.Module) -> Tensor:
    """Of names and values: what a training state is compared with, because it does not hold the base."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            value = parameter.detach().to(_BASE_DTYPE).cpu().contiguous().view(-1)
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
    """Forward of one of PEFT's layers."""

    def __init__(self, layer: LoraLayer) -> None:
        self._base = layer.get_base_layer()
        self._a, self._b = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
        self._scale = float(layer.scaling[_ADAPTER])

    def __call__(self, x: Tensor) -> Tensor:
        output: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, self._base.weight, self._base.bias, self._a.weight, self._b.weight, self._scale
        )
        return output


class _Product(torch.autograd.Function):
    """x W' + bias + scale (x A') B', without a gradient of W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_FD: Tensor,
        bias_F: Tensor | None,
        a_RD: Tensor,
        b_FR: Tensor,
        scale: float,
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        x_TD = x.reshape(-1, x.shape[-1]).to(dtype)
        inner_TR = x_TD @ a_RD.to(dtype).T
        bias_F = None if bias_F is None else bias_F.to(dtype)
        output_TF = nn.functional.linear(x_TD, weight_FD.to(dtype), bias_F)
        output_TF.addmm_(inner_TR, (b_FR * scale).to(dtype).T)
        ctx.save_for_backward(x_TD, inner_TR, weight_FD, a_RD, b_FR)
        ctx.scale, ctx.x_dtype = scale, x.dtype
        # Not as a view: some layers add to it in place.
        output: Tensor = torch.ops.aten._unsafe_view(output_TF, (*x.shape[:-1], output_TF.shape[-1]))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, inner_TR, weight_FD, a_RD, b_FR = ctx.saved_tensors
        dtype = x_TD.dtype
        grad_TF = grad.reshape(-1, grad.shape[-1])
        grad_inner_TR = grad_TF @ (b_FR * ctx.scale).to(dtype)
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_TF @ weight_FD.to(dtype)).addmm_(grad_inner_TR, a_RD.to(dtype)).to(ctx.x_dtype)
            grad_x = grad_x.view(*grad.shape[:-1], -1)
        grad_a_RD = (grad_inner_TR.T @ x_TD).to(a_RD.dtype)
        grad_b_FR = (grad_TF.T @ inner_TR).to(b_FR.dtype).mul_(ctx.scale)
        return grad_x, None, None, grad_a_RD, grad_b_FR, None
