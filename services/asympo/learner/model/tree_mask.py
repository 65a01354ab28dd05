"""Attention over a packed row in one FlexAttention call, for GPUs: tiles that no query may see are skipped.

Compiled for each length by default rules. Which kernel runs, and so how sums round, must depend neither on a
race (tuning by trial) nor on the lengths that came before (shapes made dynamic when they first change).

Legend: `_T` tokens of the row, filled up to whole tiles; `_I` tiles of queries, `_J` tiles of keys.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad

from asympo.learner.model.batching import PackedBatch
from asympo.learner.model.position_rule import PositionRule
from asympo.learner.model.transfer import to_device

TILE = 128
"""Tokens of a tile, of queries as of keys; rows are filled up to whole ones."""
_MAX_COMPILED = 256
"""Variants of the call before torch refuses more; lengths, with gradients and without, make some dozens."""


class TreeMask:
    """Which token of a row may attend to which: its ancestors and itself."""

    def __init__(self, batch: PackedBatch, *, device: torch.device) -> None:
        self.num_tokens = batch.num_tokens
        self.num_filled = filled_length(batch.num_tokens)
        # What fills up attends to itself: no key at all would be a division by zero.
        self._end_T = np.arange(1, self.num_filled + 1)
        self._end_T[: batch.num_tokens] = batch.subtree_end_T
        self._position_T = np.zeros_like(self._end_T)
        self._position_T[: batch.num_tokens] = batch.position_ids_T
        self._device = device
        self._made: dict[Any, BlockMask] = {}

    def block_mask(self, rule: PositionRule | None) -> BlockMask:
        """For all layers with this rule; made once a row."""
        name = rule if rule is None or rule.window is None else rule.window
        if name not in self._made:
            self._made[name] = self._make(rule)
        return self._made[name]

    def _make(self, rule: PositionRule | None) -> BlockMask:
        is_partial_IJ, is_full_IJ = self._tiles(rule)
        end_T = to_device(self._end_T, self._device)
        position_T = to_device(self._position_T, self._device)

        return BlockMask.from_kv_blocks(
            *self._listed(is_partial_IJ),
            *self._listed(is_full_IJ),
            BLOCK_SIZE=TILE,
            mask_mod=_pair_rule(end_T, position_T, rule),
            seq_lengths=(self.num_filled, self.num_filled),
        )

    def _tiles(self, rule: PositionRule | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Tiles with some pairs that may attend, and with all; told from extremes, so no mask is a square.

        If the rule is not a window, every tile may hold some pairs and none is known to hold all.
        """
        end_JT, position_JT = self._end_T.reshape(-1, TILE), self._position_T.reshape(-1, TILE)
        tile = np.arange(len(end_JT))
        is_before = tile[None] < tile[:, None]
        begin_I = (tile * TILE)[:, None]
        is_any = (is_before & (end_JT.max(1) > begin_I)) | (tile[None] == tile[:, None])
        is_full = is_before & (end_JT.min(1) >= begin_I + TILE)
        if rule is not None and rule.window is not None:
            is_any &= position_JT.min(1)[:, None] - position_JT.max(1)[None] < rule.window
            is_full &= position_JT.max(1)[:, None] - position_JT.min(1)[None] < rule.window
        elif rule is not None:
            is_full[:] = False
        return is_any & ~is_full, is_full

    def _listed(self, chosen_IJ: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        """Number of chosen tiles of each row of tiles, and their indexes followed by the others."""
        counts = chosen_IJ.sum(1, dtype=np.int32)
        indexes = np.argsort(~chosen_IJ, axis=1, kind="stable").astype(np.int32)
        return (
            to_device(counts, self._device)[None, None],
            to_device(indexes, self._device)[None, None],
        )


def _pair_rule(end_T: Tensor, position_T: Tensor, rule: PositionRule | None) -> Callable[..., Tensor]:
    """Whether one token may attend to another; the kernel asks where that differs within a tile."""

    def is_ancestor(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end_T[key])

    if rule is None:
        return is_ancestor
    is_visible = rule.is_visible

    def is_visible_ancestor(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        is_seen = is_visible(batch, head, position_T[query], position_T[key])
        return (key <= query) & (query < end_T[key]) & is_seen

    return is_visible_ancestor


def filled_length(num_tokens: int) -> int:
    """Whole tiles that hold this many tokens; at most 8 lengths up to 1024 and 4 in each doubling beyond.

    Every length is compiled for. What fills a row up is skipped but for its own tiles.
    """
    unit = max(TILE, (1 << (num_tokens - 1).bit_length()) // 8)
    return -(-num_tokens // unit) * unit


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: TreeMask,
    *,
    scaling: float | None,
    rule: PositionRule | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """`[1, T, H, D]` from `[1, H, T, D]`; keys and values may have fewer heads."""
    extra = mask.num_filled - mask.num_tokens
    query, key, value = (pad(part, (0, 0, 0, extra)) for part in (query, key, value))
    attend = _compiled() if value.device.type == "cuda" else flex_attention
    output, aux = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else _cap(softcap),
        block_mask=mask.block_mask(rule),
        scale=scaling,
        enable_gqa=True,
        return_aux=AuxRequest(lse=sinks is not None),
    )
    if sinks is not None:
        # One more key without a value takes this share of the softmax from all others.
        output = output * torch.sigmoid(aux.lse - sinks.to(aux.lse.dtype)[None, :, None])[..., None].to(
            output.dtype
        )
    whole: Tensor = output[:, :, : mask.num_tokens].transpose(1, 2).contiguous()
    return whole


def _cap(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@cache
def _compiled() -> Any:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_COMPILED)
    # Whole or not at all: half of it outside of the kernel would make the square of the row.
    # Nor tried on the device which of several kernels is fastest: they round in different ways.
    return torch.compile(flex_attention, fullgraph=True, dynamic=False, options={"deterministic": True})
