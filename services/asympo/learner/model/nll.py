"""Per-token NLL through the LM head in chunks: logits of the whole row never exist at once.

Legend: `_U` distinct positions that predict a trained token, `_N` trained tokens ordered by their row in
U, `_V` vocabulary, `_D` hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from asympo.learner.model.prefix_tree import IntArray
from asympo.learner.settings import HEAD_KEPT_BYTES

_CACHE_BYTES = 1 << 21


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What a model does between its last hidden state and its softmax besides one matrix product."""

    logit_scale: float = 1.0
    """Factor on the logits."""
    softcap: float | None = None
    """c in c * tanh(logits / c); None is none."""
    chunk_rows: int = 256
    """Rows of logits that exist at once."""
    max_kept_bytes: int = HEAD_KEPT_BYTES
    """Of probabilities that the forward pass leaves for the backward."""
    compute_dtype: torch.dtype = torch.float32
    """Precision of the matrix products; everything else is float32 or the input's own precision if higher."""


class _ChunkedNll(torch.autograd.Function):
    """Forward keeps one log-sum-exp a row; backward computes each chunk of logits again.

    The first chunks keep their probabilities instead, for one product in four less.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_UD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        row_N: Tensor,
        target_N: Tensor,
        bounds: Sequence[int],
        options: HeadOptions,
    ) -> tuple[Tensor, Tensor]:
        cast_UD, cast_VD = hidden_UD.to(options.compute_dtype), weight_VD.to(options.compute_dtype)
        wide = torch.promote_types(hidden_UD.dtype, torch.float32)
        lse_U = torch.empty(len(hidden_UD), dtype=wide, device=hidden_UD.device)
        entropy_U = torch.empty_like(lse_U)
        nll_N = torch.empty(len(target_N), dtype=wide, device=hidden_UD.device)
        # The slope of a soft cap needs the logits themselves.
        may_keep = ctx.needs_input_grad[0] and options.softcap is None
        room = options.max_kept_bytes if may_keep else 0
        kept: list[Tensor] = []
        for rows, tokens in _chunks(len(hidden_UD), bounds, options.chunk_rows):
            logits, _ = _logits(cast_UD[rows], cast_VD, bias_V, wide, options)
            picked = logits[row_N[tokens] - rows.start, target_N[tokens]]
            room -= logits.nbytes
            is_kept = room >= 0
            for block in _blocks(logits):
                probability = torch.softmax(logits[block], dim=-1)
                lse = _log_sum_exp(logits[block], probability)
                place = slice(rows.start + block.start, rows.start + block.stop)
                lse_U[place] = lse
                entropy_U[place] = lse - torch.linalg.vecdot(probability, logits[block])
                if is_kept:
                    logits[block] = probability
            nll_N[tokens] = lse_U[row_N[tokens]] - picked
            if is_kept:
                kept.append(logits)
            del logits
        ctx.save_for_backward(hidden_UD, weight_VD, bias_V, row_N, target_N, lse_U)
        ctx.bounds, ctx.options, ctx.kept = bounds, options, kept
        ctx.mark_non_differentiable(entropy_U)
        return nll_N, entropy_U

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_UD, weight_VD, bias_V, row_N, target_N, lse_U = ctx.saved_tensors
        options: HeadOptions = ctx.options
        cast_UD, cast_VD = hidden_UD.to(options.compute_dtype), weight_VD.to(options.compute_dtype)
        grad_hidden_UD = torch.empty_like(hidden_UD)
        # A head that is not trained has none.
        _, is_weight_trained, is_bias_trained, *_ = ctx.needs_input_grad
        earlier_VD = _gradient_so_far(weight_VD) if is_weight_trained else None
        grad_weight_VD = earlier_VD
        grad_bias_V = torch.zeros_like(bias_V) if is_bias_trained else None
        # Each chunk of probabilities is overwritten by its gradient, so they serve once.
        kept, ctx.kept = ctx.kept, []
        for rows, tokens in _chunks(len(hidden_UD), ctx.bounds, options.chunk_rows):
            local, grad = row_N[tokens] - rows.start, grad_N[tokens]
            grad_row = torch.zeros_like(lse_U[rows]).index_add_(0, local, grad)
            grad_logits, slope = kept.pop(0) if kept else None, None
            is_logits = grad_logits is None
            if grad_logits is None:
                grad_logits, slope = _logits(cast_UD[rows], cast_VD, bias_V, lse_U.dtype, options)
            for block in _blocks(grad_logits):
                part = grad_logits[block]
                if is_logits:
                    part.sub_(lse_U[rows][block, None]).exp_()
                part.mul_(grad_row[block, None])
            grad_logits.index_put_((local, target_N[tokens]), -grad, accumulate=True)
            if slope is not None:
                grad_logits *= slope
            if grad_bias_V is not None:
                grad_bias_V += grad_logits.sum(0).to(grad_bias_V.dtype)
            cast_grad = (grad_logits * options.logit_scale if options.logit_scale != 1.0 else grad_logits).to(
                options.compute_dtype
            )
            grad_hidden_UD[rows] = (cast_grad @ cast_VD).to(hidden_UD.dtype)
            if is_weight_trained:
                grad_weight_VD = _add_product(grad_weight_VD, cast_grad.T, cast_UD[rows], weight_VD.dtype)
            # Before the next chunk is made: one exists at a time.
            del grad_logits, cast_grad, part, slope
        if earlier_VD is not None:
            grad_weight_VD = None
        return grad_hidden_UD, grad_weight_VD, grad_bias_V, None, None, None, None


def token_nll(
    hidden_UD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    *,
    row_N: Tensor,
    target_N: Tensor,
    token_bounds: Sequence[int],
    options: HeadOptions,
) -> tuple[Tensor, Tensor]:
    """NLL of each trained token, differentiable in hidden states, weight and bias; entropy of each row.

    `row_N` must be ascending; `token_bounds[k]` is the number of tokens whose row is below
    `k * chunk_rows` (`chunk_bounds` makes it). NLL is float32 or better; targets may share a row.
    """
    nll_N, entropy_U = _ChunkedNll.apply(  # type: ignore[no-untyped-call]
        hidden_UD, weight_VD, bias_V, row_N, target_N, tuple(token_bounds), options
    )
    return nll_N, entropy_U


def chunk_bounds(row_N: Sequence[int] | IntArray, *, num_rows: int, chunk_rows: int) -> list[int]:
    """Where each chunk's tokens begin, and their total; computed on the host, so no device waits.

    `row_N` is ascending.
    """
    firsts = [*range(0, num_rows, chunk_rows), num_rows]
    bounds: list[int] = np.searchsorted(row_N, firsts).tolist()
    return bounds


def _chunks(num_rows: int, bounds: Sequence[int], chunk_rows: int) -> list[tuple[slice, slice]]:
    return [
        (slice(start, min(start + chunk_rows, num_rows)), slice(bounds[index], bounds[index + 1]))
        for index, start in enumerate(range(0, num_rows, chunk_rows))
    ]


def _blocks(logits: Tensor) -> list[slice]:
    """Rows of a chunk that fit into a core's cache together: what passes over them reads memory once."""
    size = len(logits) if logits.is_cuda else max(1, _CACHE_BYTES // (logits.shape[1] * logits.itemsize))
    return [slice(start, min(start + size, len(logits))) for start in range(0, len(logits), size)]


def _log_sum_exp(logits: Tensor, probability: Tensor) -> Tensor:
    """From the softmax that is needed anyway; torch.logsumexp is as slow as a softmax on CPUs.

    The largest probability is at least 1 / V, so its logarithm is exact to rounding.
    """
    return logits.amax(dim=-1) - probability.amax(dim=-1).log_()


def _gradient_so_far(weight: Tensor) -> Tensor | None:
    """Of earlier rows of a step, to add to in place: autograd would first make another matrix of this size.

    None where somebody has to be told of each addition.
    """
    if not weight.is_leaf or weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return None
    return weight.grad if type(weight.grad) is Tensor else None


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """total + left @ right in `dtype`, in place and without a second matrix where precisions agree."""
    if total is None:
        return (left @ right).to(dtype)
    if left.dtype == dtype:
        return total.addmm_(left, right)
    total += left @ right
    return total


def _logits(
    hidden: Tensor, weight_VD: Tensor, bias_V: Tensor | None, wide: torch.dtype, options: HeadOptions
) -> tuple[Tensor, Tensor | None]:
    """Logits in `wide` precision, and d capped / d raw where the model caps them."""
    logits = (hidden @ weight_VD.T).to(wide)
    if bias_V is not None:
        logits += bias_V.to(wide)
    if options.logit_scale != 1.0:
        logits *= options.logit_scale
    if options.softcap is None:
        return logits, None
    tanh = torch.tanh(logits / options.softcap)
    return tanh * options.softcap, 1 - tanh.square()
