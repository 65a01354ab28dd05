"""FlexAttention, attention in blocks and a dense mask: the same outputs and gradients, and their times."""

import math
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import sliding_window_causal_mask_function

from asympo.doctor.gpu.steps import Found
from asympo.learner.device import wait_for
from asympo.learner.model.attention import packed_attention, plan_layout
from asympo.learner.model.batching import PackedBatch, TrainedGroup, TrainedResponse, collate
from asympo.learner.model.position_rule import PositionRule
from asympo.learner.model.tree_mask import TreeMask

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest difference as a share of the largest value."""
_LENGTHS = (300, 1000)
_TIMED_TOKENS = {"cpu": 256, "cuda": 8192}
_HEADS, _KEY_HEADS, _WINDOW = 4, 2, 100

Ways = dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]


def run(*, device: str, directory: Path) -> Found:
    """All combinations of precision, head size, window and length against the dense mask in float64."""
    torch.manual_seed(0)
    worst = 0.0
    wrong: list[str] = []
    for length, dtype, size, window in product(_LENGTHS, _TOLERANCE, (64, 128), (None, _WINDOW)):
        batch = _row(length)
        inputs = [torch.randn(1, heads, batch.num_tokens, size) for heads in (_HEADS, _KEY_HEADS, _KEY_HEADS)]
        dense = _computed(_dense(batch, window), inputs, torch.float64, "cpu", with_gradient=True)
        for name, way in _ways(batch, device, window).items():
            # FlexAttention has gradients on GPUs only.
            with_gradient = name != "flex" or device == "cuda"
            found = _computed(way, inputs, dtype, device, with_gradient=with_gradient)
            error = max(_distance(ours, right) for ours, right in zip(found, dense, strict=False))
            worst = max(worst, error / _TOLERANCE[dtype])
            if not error <= _TOLERANCE[dtype]:
                wrong.append(f"{name} {dtype} head {size} window {window} length {length}: {error:.1e}")
    seconds = _times(device)
    figures: dict[str, Any] = {
        "worst_share_of_tolerance": round(worst, 3),
        **{f"{name}_milliseconds": 1e3 * taken for name, taken in seconds.items()},
        "timed_tokens": _TIMED_TOKENS[device],
        "graphs_compiled": torch._dynamo.utils.counters["stats"].get("unique_graphs", 0),
    }
    if wrong:
        return Found(sentence=f"{len(wrong)} differ, the first: {wrong[0]}", is_ok=False, figures=figures)
    times = " and ".join(f"{name} {1e3 * taken:.1f} ms" for name, taken in seconds.items())
    return Found(sentence=f"all agree; a long row takes {times}", figures=figures)


def _row(num_tokens: int) -> PackedBatch:
    """A prompt and four responses that share their beginning in pairs."""
    prompt, length = num_tokens // 4, (num_tokens - num_tokens // 4) // 4
    responses = [
        tuple((number // 2 if place < length // 3 else number) + place % 50 for place in range(length))
        for number in range(4)
    ]
    group = TrainedGroup(
        prompt_ids=tuple(place % 50 for place in range(prompt)),
        responses=tuple(TrainedResponse(token_ids=ids, advantage=1.0) for ids in responses),
    )
    return collate([group], share_prefixes=True)


def _ways(batch: PackedBatch, device: str, window: int | None) -> Ways:
    place = torch.device(device)
    rule = None
    if window is not None:
        rule = PositionRule(is_visible=sliding_window_causal_mask_function(window), window=window)
    layouts = {"blocks": plan_layout(batch, device=place), "flex": TreeMask(batch, device=place)}

    def way(layout: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda query, key, value: packed_attention(
            torch.nn.Module(), query, key, value, rule, packed_layout=layout
        )[0]

    return {name: way(layout) for name, layout in layouts.items()}


def _dense(batch: PackedBatch, window: int | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    index = torch.arange(batch.num_tokens)
    end, position = torch.from_numpy(batch.subtree_end_T), torch.from_numpy(batch.position_ids_T)
    allowed = (index[None] <= index[:, None]) & (index[:, None] < end[None])
    if window is not None:
        allowed &= position[:, None] - position[None] < window

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (each.repeat_interleave(_HEADS // _KEY_HEADS, dim=1) for each in (key, value))
        scores = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).masked_fill(~allowed, -torch.inf)
        return (scores.softmax(-1) @ value).transpose(1, 2)

    return attend


def _computed(
    way: Callable[[Tensor, Tensor, Tensor], Tensor],
    inputs: list[Tensor],
    dtype: torch.dtype,
    device: str,
    *,
    with_gradient: bool,
) -> list[Tensor]:
    """Output, and the gradients of a sum that weighs every value differently."""
    leaves = [each.to(device, dtype).requires_grad_(with_gradient) for each in inputs]
    output = way(*leaves)
    if not with_gradient:
        return [output.detach().double().cpu()]
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    output.backward(weights.to(device, dtype))
    return [
        each.double().cpu()
        for each in (output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None))
    ]


def _distance(ours: Tensor, right: Tensor) -> float:
    return float((ours - right).abs().max() / right.abs().max())


def _times(device: str) -> dict[str, float]:
    """Best of a few: forward and backward of one layer on a long row; on a CPU forward alone."""
    batch = _row(_TIMED_TOKENS[device])
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    inputs = [torch.randn(1, heads, batch.num_tokens, 128) for heads in (16, 8, 8)]
    taken = {}
    for name, way in _ways(batch, device, None).items():
        best = math.inf
        for _ in range(4):
            leaves = [each.to(device, dtype).requires_grad_(device == "cuda") for each in inputs]
            wait_for(torch.device(device))
            begun = time.perf_counter()
            output = way(*leaves)
            if device == "cuda":
                output.sum().backward()
            wait_for(torch.device(device))
            best = min(best, time.perf_counter() - begun)
        taken[name] = best
    return taken
