"""Attention over a packed row: subtree by subtree, so no mask is ever the square of a long row.

Registered with transformers as `asympo_packed`; the layout travels to every layer as a keyword argument.
Legend: `[1, H, T, D]` heads, row tokens, head size; `_Q` queries and `_K` keys of one block.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from asympo.common.errors import BadModel
from asympo.learner.model.batching import PackedBatch
from asympo.learner.model.position_rule import PositionRule, position_rule
from asympo.learner.model.prefix_tree import IntArray
from asympo.learner.model.transfer import to_device
from asympo.learner.model.tree_mask import TreeMask, tree_attention

PACKED_ATTENTION = "asympo_packed"
MAX_BLOCK_TOKENS = 128
"""Queries of one attention call: larger ones waste masked work, smaller ones waste calls."""

Range = tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """One attention call: a range of queries over their common ancestors and themselves."""

    query: Range
    """Half-open range of the row; also the last keys."""
    keys: tuple[Range, ...]
    """Common ancestors of the queries and the queries themselves, ascending; neighbours are one range."""
    allowed_QQ: Tensor | None
    """Which of the queries each attends to, besides all ancestors. None: the plain triangle."""
    position_Q: Tensor
    """Depths of the queries; ancestors have the depths from 0 on."""

    @property
    def num_queries(self) -> int:
        return self.query[1] - self.query[0]

    @property
    def num_ancestors(self) -> int:
        return sum(end - begin for begin, end in self.keys) - self.num_queries


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedLayout:
    """The attention calls that together cover a row, in row order."""

    blocks: tuple[Block, ...]
    masks: dict[tuple[torch.dtype, Any], list[Tensor | None]] = field(default_factory=dict, repr=False)
    """What `block_masks` made, for the other layers of the same forward."""


def plan_layout(
    batch: PackedBatch, *, device: torch.device, max_block: int = MAX_BLOCK_TOKENS
) -> PackedLayout:
    """Chooses the attention calls for a row; a pure function of its tree."""
    ends = batch.subtree_end_T
    trunks = _Trunks(ends)
    planned: list[tuple[Range, tuple[Range, ...]]] = []
    stack: list[tuple[Range, tuple[Range, ...]]] = [((0, batch.num_tokens), ())]
    while stack:
        (begin, end), ancestors = stack.pop()
        if end - begin <= max_block:
            planned.append(((begin, end), ancestors))
        elif ends[begin] == end:
            # One tree: its trunk, a piece at a time (the kernels do not skip the upper triangle), then
            # its branches under it.
            trunk_end = trunks.end_of(begin, limit=end)
            for piece in _pieces(begin, trunk_end, max_block):
                planned.append((piece, ancestors))
                ancestors = _joined(ancestors, piece)
            if trunk_end < end:
                stack.append(((trunk_end, end), ancestors))
        else:
            # Reversed, so that blocks are popped in row order: their outputs are joined in that order.
            stack.extend((part, ancestors) for part in reversed(_runs(ends, begin, end, max_block)))
    position_T = to_device(batch.position_ids_T, device)
    end_T = to_device(ends, device)
    return PackedLayout(
        blocks=tuple(
            Block(
                query=query,
                keys=_joined(ancestors, query),
                allowed_QQ=None
                if trunks.end_of(query[0], limit=query[1]) == query[1]
                else _allowed(query, end_T),
                position_Q=position_T[slice(*query)],
            )
            for query, ancestors in planned
        )
    )


class _Trunks:
    """Runs of tokens whose subtree is all that follows them."""

    def __init__(self, ends: IntArray) -> None:
        self._begins = (np.flatnonzero(ends[1:] != ends[:-1]) + 1).tolist()

    def end_of(self, begin: int, *, limit: int) -> int:
        """End of the run that `begin` is in."""
        following = bisect_right(self._begins, begin)
        return min(limit, self._begins[following]) if following < len(self._begins) else limit


def _pieces(begin: int, end: int, max_block: int) -> list[Range]:
    """The range in as few parts of similar size as `max_block` allows."""
    count = -(-(end - begin) // max_block)
    cuts = [begin + (end - begin) * index // count for index in range(count + 1)]
    return list(pairwise(cuts))


def _joined(ranges: tuple[Range, ...], added: Range) -> tuple[Range, ...]:
    """Ranges with one more at their end; neighbours become one."""
    if ranges and ranges[-1][1] == added[0]:
        return (*ranges[:-1], (ranges[-1][0], added[1]))
    return (*ranges, added)


def _runs(ends: IntArray, begin: int, end: int, max_block: int) -> list[Range]:
    """Neighbouring trees joined up to `max_block` tokens; a larger tree stands alone."""
    runs: list[Range] = []
    position = begin
    while position < end:
        stop = int(ends[position])
        if runs and stop - runs[-1][0] <= max_block:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((position, stop))
        position = stop
    return runs


def _allowed(query: Range, end_T: Tensor) -> Tensor:
    """Among the tokens of a range, which are the query itself or an ancestor of it."""
    index_Q = torch.arange(*query, device=end_T.device)
    return (index_Q[None] <= index_Q[:, None]) & (index_Q[:, None] < end_T[slice(*query)][None])


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PositionRule | Tensor | None,
    *,
    packed_layout: PackedLayout | TreeMask | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention function with the signature transformers expects; returns `[1, T, H, D]`.

    `softcap` bounds the scores, `s_aux` are scores of a key that every head has and that has no value.
    """
    if packed_layout is None:
        raise BadModel("its layers are not told how the row is laid out")
    if isinstance(attention_mask, Tensor):
        raise BadModel("its layers make masks of their own")
    # Rotary positions leave queries and keys in float32 under autocast, and the kernels want one type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    is_plain = softcap is None and s_aux is None
    if isinstance(packed_layout, TreeMask):
        if dropout:
            raise BadModel(f"attention dropout of {dropout} is not possible with FlexAttention: give blocks")
        attend_tree = partial(tree_attention, scaling=scaling, rule=attention_mask)
        return attend_tree(query, key, value, packed_layout, softcap=softcap, sinks=s_aux), None
    masks = block_masks(packed_layout, dtype=value.dtype, rule=attention_mask)
    # The CPU kernel knows no dropout, and wants keys and values of one size.
    if value.device.type == "cpu" and is_plain and not dropout and value.shape[-1] == key.shape[-1]:
        output: Tensor = _PackedFlash.apply(  # type: ignore[no-untyped-call]
            query, key, value, packed_layout, masks, scaling
        )
        return output, None
    key, value = (_repeat_heads(part, query.shape[1]) for part in (key, value))
    attend = (
        partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
        if is_plain
        else partial(_explicit_attention, dropout=dropout, scaling=scaling, softcap=softcap, sinks=s_aux)
    )
    outputs = [
        attend(
            query[:, :, slice(*block.query)],
            _gather(key, block),
            _gather(value, block),
            attn_mask=mask,
            is_causal=mask is None,
        )
        for block, mask in zip(packed_layout.blocks, masks, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None,
    is_causal: bool,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of one block, with its scores computed explicitly."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    if sinks is not None:
        scores = torch.cat(
            [scores, sinks.to(scores.dtype).view(1, -1, 1, 1).expand_as(scores[..., :1])], dim=-1
        )
    share = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return torch.nn.functional.dropout(share[..., : key.shape[2]], dropout) @ value


def block_masks(
    layout: PackedLayout, *, dtype: torch.dtype, rule: PositionRule | None
) -> list[Tensor | None]:
    """Masks to add to the scores of each block; None is the plain triangle. Made once a forward."""
    name = rule if rule is None or rule.window is None else rule.window
    known = layout.masks.get((dtype, name))
    if known is None:
        trunk_masks: dict[Range, Tensor] = {}
        known = [_mask(block, dtype, rule, trunk_masks) for block in layout.blocks]
        layout.masks[dtype, name] = known
    return known


def _mask(
    block: Block, dtype: torch.dtype, rule: PositionRule | None, trunk_masks: dict[Range, Tensor]
) -> Tensor | None:
    """`trunk_masks`: pieces of trunks of the same sizes have one mask together."""
    sizes = (block.num_queries, block.num_ancestors)
    if rule is not None and (rule.window is None or sum(sizes) > rule.window):
        ancestors = torch.arange(block.num_ancestors, device=block.position_Q.device)
        hidden = rule.hidden(block.position_Q, torch.cat([ancestors, block.position_Q]))
        return _whole_mask(block, dtype).masked_fill_(hidden, float("-inf"))
    if block.allowed_QQ is not None:
        return _whole_mask(block, dtype)
    if not block.num_ancestors:
        # Only here: the kernels align `is_causal` at the first key, which would hide most ancestors.
        return None
    if sizes not in trunk_masks:
        trunk_masks[sizes] = _whole_mask(block, dtype)
    return trunk_masks[sizes]


def _whole_mask(block: Block, dtype: torch.dtype) -> Tensor:
    """What to add to the scores `[Q, K]`: ancestors are allowed to all."""
    num_queries, num_ancestors = block.num_queries, block.num_ancestors
    mask = torch.zeros(num_queries, num_ancestors + num_queries, dtype=dtype, device=block.position_Q.device)
    allowed = block.allowed_QQ
    if allowed is None:
        allowed = torch.ones(num_queries, num_queries, dtype=torch.bool, device=mask.device).tril_()
    mask[:, num_ancestors:].masked_fill_(~allowed, float("-inf"))
    return mask


class _PackedFlash(torch.autograd.Function):
    """The same on CPUs with less kept: no copy of keys and values for each block, nor for each query head.

    Calls the kernels behind scaled_dot_product_attention, because their backward must add to parts of one
    gradient where autograd would make a whole one for every block.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: PackedLayout,
        masks: list[Tensor | None],
        scaling: float | None,
    ) -> Tensor:
        _, num_heads, num_tokens, head_size = query.shape
        output = query.new_empty(1, num_tokens, num_heads, head_size)
        sums = []
        for block, mask in zip(layout.blocks, masks, strict=True):
            part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, slice(*block.query)],
                *(_repeat_heads(_gather(each, block), num_heads) for each in (key, value)),
                is_causal=mask is None,
                attn_mask=mask,
                scale=scaling,
            )
            output[:, slice(*block.query)] = part.transpose(1, 2)
            sums.append(log_sum)
        ctx.save_for_backward(query, key, value, output, *sums)
        ctx.layout, ctx.masks, ctx.scaling = layout, masks, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *sums = ctx.saved_tensors
        num_heads = query.shape[1]
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        for block, mask, log_sum in zip(ctx.layout.blocks, ctx.masks, sums, strict=True):
            rows = slice(*block.query)
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_output[:, rows].transpose(1, 2),
                query[:, :, rows],
                *(_repeat_heads(_gather(each, block), num_heads) for each in (key, value)),
                output[:, rows].transpose(1, 2),
                log_sum,
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scaling,
            )
            grad_query[:, :, rows] = parts[0]
            _scatter_add(grad_key, parts[1], block)
            _scatter_add(grad_value, parts[2], block)
        return grad_query, grad_key, grad_value, None, None, None


def _repeat_heads(tensor: Tensor, num_heads: int) -> Tensor:
    """Keys or values for every query head."""
    times = num_heads // tensor.shape[1]
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=1)


def _gather(tensor: Tensor, block: Block) -> Tensor:
    parts = [tensor[:, :, begin:end] for begin, end in block.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _scatter_add(total: Tensor, grad: Tensor, block: Block) -> None:
    """Adds the gradient of gathered and repeated keys (or values) to that of all of them."""
    grad = grad.unflatten(1, (total.shape[1], -1)).sum(2)
    position = 0
    for begin, end in block.keys:
        total[:, :, begin:end] += grad[:, :, position : position + end - begin]
        position += end - begin


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, position_rule)
