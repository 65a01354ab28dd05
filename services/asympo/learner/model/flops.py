"""How many operations a step needs, and how many a device can do."""

import re
from dataclasses import dataclass
from typing import Self

import torch
from transformers import PretrainedConfig, PreTrainedModel

_PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "MI300X": 1307e12,
}
"""FLOP/s of bfloat16 products by the makers' data sheets, without sparsity; the first that is in a name."""


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """Operations that forward and backward of a model need; computing a layer again does not count."""

    per_token: int
    """Of layers, for each token."""
    per_head_row: int
    """Of the head, for each position that predicts a trained token."""
    per_pair: int
    """Of attention, for each query and a key that it may look at."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """Parameters of experts count as far as a token uses them."""
        config: PretrainedConfig = model.config.get_text_config()
        head = getattr(model.get_output_embeddings(), "weight", None)
        tables = {id(head), id(getattr(model.get_input_embeddings(), "weight", None))}
        share = _share_of_experts(config)
        body = sum(
            _per_weight(parameter) * round(parameter.numel() * (share if ".experts." in name else 1))
            for name, parameter in model.named_parameters()
            if id(parameter) not in tables
        )
        heads = getattr(config, "num_attention_heads", 0)
        head_size = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
        pair = 2 * 2 * heads * head_size * config.num_hidden_layers
        return cls(
            per_token=body,
            per_head_row=0 if head is None else _per_weight(head) * head.numel(),
            per_pair=3 * pair,
        )

    def step(self, *, num_tokens: int, num_head_rows: int, num_pairs: int) -> int:
        """A step's; each sequence attends causally."""
        return self.per_token * num_tokens + self.per_head_row * num_head_rows + self.per_pair * num_pairs


def known_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of a device that is known; None for CPUs, other GPUs, parts of one, and other precisions."""
    if device.type != "cuda" or dtype is not torch.bfloat16:
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """The same by the name that torch gives to the device."""
    if "MIG" in name:
        return None
    return next((peak for known, peak in _PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def _per_weight(weight: torch.Tensor) -> int:
    """Two for each product: forward, gradient of the input, and that of what is trained."""
    return 6 if weight.requires_grad else 4


def _share_of_experts(config: PretrainedConfig) -> float:
    """Which part of all experts a token goes through."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    total = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    used = getattr(config, "num_experts_per_tok", None)
    return used / total if total and used else 1.0
