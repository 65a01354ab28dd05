"""How many operations a step takes, and how many the device can do."""

import time

import torch
from transformers import PretrainedConfig, PreTrainedModel

from asympo.learner.device import wait_for

_SIDE = {"cpu": 2048, "cuda": 8192}


def matmul_peak_flops(device: torch.device, dtype: torch.dtype, *, repeats: int = 5) -> float:
    """FLOP/s of a large square matrix product, the best of a few: the peak that a step is held against."""
    side = _SIDE.get(device.type, 4096)
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)
    torch.mm(left, right)
    best = float("inf")
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        torch.mm(left, right)
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def step_flops(
    model: PreTrainedModel, *, num_computed_tokens: int, num_head_rows: int, num_attended: int
) -> float:
    """Operations that forward and backward need: recomputation does not count.

    `num_attended` is the number of (query, key) pairs that attention must look at.
    """
    config: PretrainedConfig = model.config.get_text_config()
    tables = {id(p): p.numel() for p in (_weight(model.get_input_embeddings()), _head_weight(model))}
    head = tables[id(_head_weight(model))]
    body = sum(parameter.numel() for parameter in model.parameters()) - sum(tables.values())
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 2 * 2 * config.num_attention_heads * head_size * config.num_hidden_layers * num_attended
    return 6 * body * num_computed_tokens + 6 * head * num_head_rows + 3 * attention


def _weight(module: torch.nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _head_weight(model: PreTrainedModel) -> torch.Tensor:
    return _weight(model.get_output_embeddings())
