"""Attention over a packed row: subtree by subtree, so no mask is ever the square of a long row.

Registered with transformers as ``asympo_packed``; the layout travels to every layer as a keyword argument.
Legend: ``[1, H, T, D]`` heads, row tokens, head size; ``_Q`` queries and ``_K`` keys of one block.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from asympo.learner.batching import PackedBatch

PACKED_ATTENTION = "asympo_packed"
MAX_BLOCK_TOKENS = 256
"""Queries of one attention call, chains excepted: larger ones waste masked work, smaller ones waste calls."""

Range = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One attention call: a range of queries over their common ancestors and themselves."""

    query: Range
    """Half-open range of the row; also the last keys."""
    ancestors: tuple[Range, ...]
    """Keys before the query range that all of it sees, ascending."""
    allowed_QK: Tensor | None
    """None: the plain triangle without ancestors."""
    distance_QK: Tensor
    """Position of query minus position of key, for sliding windows."""


@dataclass(frozen=True, kw_only=True)
class PackedLayout:
    """The attention calls that together cover a row, in row order."""

    blocks: tuple[Block, ...]


def plan_layout(
    batch: PackedBatch, *, device: torch.device, max_block: int = MAX_BLOCK_TOKENS
) -> PackedLayout:
    """Chooses the attention calls for a row; a pure function of its tree."""
    ends = batch.subtree_end_T
    planned: list[tuple[Range, tuple[Range, ...]]] = []
    stack: list[tuple[Range, tuple[Range, ...]]] = [((0, batch.num_tokens), ())]
    while stack:
        (begin, end), ancestors = stack.pop()
        chain_end = _chain_end(ends, begin, end)
        if end - begin <= max_block or chain_end == end:
            planned.append(((begin, end), ancestors))
        elif ends[begin] == end:
            # One tree: its trunk is a call of its own, then its branches under it.
            planned.append(((begin, chain_end), ancestors))
            stack.append(((chain_end, end), (*ancestors, (begin, chain_end))))
        else:
            stack.extend((part, ancestors) for part in reversed(_runs(ends, begin, end, max_block)))
    return PackedLayout(blocks=tuple(_block(batch, query, ancestors, device) for query, ancestors in planned))


def _chain_end(ends: list[int], begin: int, end: int) -> int:
    """End of the trunk: the run of tokens whose subtree is all that follows them."""
    position = begin
    while position < end and ends[position] == ends[begin]:
        position += 1
    return position


def _runs(ends: list[int], begin: int, end: int, max_block: int) -> list[Range]:
    """Neighbouring trees joined up to ``max_block`` tokens; a larger tree stands alone."""
    runs: list[Range] = []
    position = begin
    while position < end:
        stop = ends[position]
        if runs and stop - runs[-1][0] <= max_block:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((position, stop))
        position = stop
    return runs


def _block(batch: PackedBatch, query: Range, ancestors: tuple[Range, ...], device: torch.device) -> Block:
    position_T = torch.tensor(batch.position_ids_T, device=device)
    end_T = torch.tensor(batch.subtree_end_T, device=device)
    query_Q = torch.arange(*query, device=device)
    key_K = torch.cat([torch.arange(*part, device=device) for part in (*ancestors, query)])
    is_triangle = not ancestors and _chain_end(batch.subtree_end_T, *query) == query[1]
    allowed_QK = (key_K[None] <= query_Q[:, None]) & (query_Q[:, None] < end_T[key_K][None])
    return Block(
        query=query,
        ancestors=ancestors,
        allowed_QK=None if is_triangle else allowed_QK,
        distance_QK=position_T[query_Q][:, None] - position_T[key_K][None],
    )


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_layout: PackedLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention function with the signature transformers expects; returns ``[1, T, H, D]``."""
    query, key = query.to(value.dtype), key.to(value.dtype)
    queries_per_key = query.shape[1] // key.shape[1]
    if queries_per_key > 1:
        key, value = (part.repeat_interleave(queries_per_key, dim=1) for part in (key, value))
    outputs = []
    for block in packed_layout.blocks:
        ranges = (*block.ancestors, block.query)
        allowed = block.allowed_QK
        if sliding_window is not None and block.distance_QK.shape[1] > sliding_window:
            near = block.distance_QK < sliding_window
            allowed = near & (allowed if allowed is not None else block.distance_QK >= 0)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, slice(*block.query)],
                _gather(key, ranges),
                _gather(value, ranges),
                attn_mask=allowed,
                dropout_p=dropout,
                is_causal=allowed is None,
                scale=scaling,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _gather(tensor: Tensor, ranges: tuple[Range, ...]) -> Tensor:
    parts = [tensor[:, :, begin:end] for begin, end in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
