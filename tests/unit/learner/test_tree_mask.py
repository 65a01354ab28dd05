"""FlexAttention over a row against the dense mask; on CPUs it is not compiled and makes the whole square."""

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asympo.common.errors import BadModel
from asympo.learner.model import tree_mask
from asympo.learner.model.attention import packed_attention
from asympo.learner.model.batching import PackedBatch, TrainedGroup, TrainedResponse, collate
from asympo.learner.model.check import Difference, groups_for_check, measure, one_thread
from asympo.learner.model.forward_path import ForwardPath
from asympo.learner.model.miniature import make_miniature
from asympo.learner.model.policy import Policy, load_model
from asympo.learner.model.tree_mask import TreeMask, filled_length
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig

from tests.unit.learner.test_batching import draw_groups, nearer_than

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")


@pytest.fixture(autouse=True)
def _gradients_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain formula has them; torch refuses because its compiled CPU kernel has not."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)


def allowed(batch: PackedBatch, window: int | None) -> np.ndarray:
    """Which key each query attends to, `[T, T]`."""
    key, query = np.meshgrid(np.arange(batch.num_tokens), np.arange(batch.num_tokens))
    dense = (key <= query) & (query < batch.subtree_end_T[key])
    if window is not None:
        dense &= batch.position_ids_T[query] - batch.position_ids_T[key] < window
    return dense


def with_gradients(output: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad(output, inputs, weight)]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_outputs_and_gradients_are_those_of_the_dense_mask(
    dtype: torch.dtype, tolerance: float, window: int | None
) -> None:
    batch = collate(draw_groups(random.Random(0)), share_prefixes=True)
    torch.manual_seed(0)
    inputs: Any = tuple(
        torch.randn(1, heads, batch.num_tokens, 8, dtype=dtype, requires_grad=True) for heads in (4, 2, 2)
    )
    mask = TreeMask(batch, device=CPU)
    ours, _ = packed_attention(
        torch.nn.Module(),
        *(inputs[0], inputs[1], inputs[2], nearer_than(window)),
        packed_layout=mask,
        scaling=0.3,
    )
    query, key, value = inputs[0], *(part.repeat_interleave(2, dim=1) for part in inputs[1:])
    theirs = scaled_dot_product_attention(
        query, key, value, attn_mask=torch.from_numpy(allowed(batch, window)), scale=0.3
    ).transpose(1, 2)
    for mine, expected in zip(with_gradients(ours, inputs), with_gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=tolerance, atol=tolerance)


def test_no_needed_tile_is_skipped_and_none_is_whole_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tree_mask, "TILE", 4)
    for seed, window in product(range(40), (None, 2, 6)):
        batch = collate(draw_groups(random.Random(seed)), share_prefixes=bool(seed % 4))
        if not batch.num_tokens:
            continue
        mask = TreeMask(batch, device=CPU)
        made = mask.block_mask(nearer_than(window))
        dense = np.eye(mask.num_filled, dtype=bool)
        dense[: batch.num_tokens, : batch.num_tokens] = allowed(batch, window)
        tiles = dense.reshape(mask.num_filled // 4, 4, -1, 4).transpose(0, 2, 1, 3)
        some, every = tiles.any((2, 3)), tiles.all((2, 3))
        full = listed(made.full_kv_num_blocks, made.full_kv_indices)
        partial = listed(made.kv_num_blocks, made.kv_indices)
        assert not (full & ~every).any()
        assert not (some & ~(full | partial)).any()
        assert not (full & partial).any()
        if window is None:
            assert (full == every).all()
            assert (partial == some & ~every).all()


def listed(counts: Tensor | None, indexes: Tensor | None) -> np.ndarray:
    """The tiles that a kernel visits, `[I, J]`."""
    assert counts is not None
    assert indexes is not None
    chosen = np.zeros(indexes.shape[2:], dtype=bool)
    for row, (count, order) in enumerate(zip(counts[0, 0].tolist(), indexes[0, 0].tolist(), strict=True)):
        chosen[row, order[:count]] = True
    return chosen


def test_policy_gives_the_same_nll_and_gradients_as_with_blocks(tiny_model: Path) -> None:
    batch = collate(draw_groups(random.Random(1)), share_prefixes=True)
    found = []
    for attention in ("blocks", "flex"):
        model = load_model(tiny_model, dtype=torch.float64, device=CPU)
        policy = Policy(model=model, compute_dtype=torch.float64, path=ForwardPath(attention=attention))
        policy.response_nll(batch).mean_nll_R.square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for blocks, flex in zip(*found, strict=True):
        torch.testing.assert_close(flex, blocks, rtol=1e-9, atol=1e-12)


def test_dropout_is_refused() -> None:
    batch = collate(draw_groups(random.Random(0)), share_prefixes=True)
    tensor = torch.zeros(1, 1, batch.num_tokens, 8)
    with pytest.raises(BadModel, match="dropout"):
        packed_attention(
            torch.nn.Module(),
            *(tensor, tensor, tensor, None),
            packed_layout=TreeMask(batch, device=CPU),
            dropout=0.1,
        )


def test_rows_of_all_lengths_are_filled_to_few() -> None:
    filled = [filled_length(num_tokens) for num_tokens in range(1, 32_769)]
    assert len(set(filled)) <= 8 + 4 * 5
    assert all(length % tree_mask.TILE == 0 for length in filled)
    assert all(n <= length < max(n + tree_mask.TILE, 1.25 * n + 1) for n, length in enumerate(filled, 1))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss", "qwen2_moe"])
@one_thread()
def test_windows_caps_and_sinks_are_those_of_blocks(family: str) -> None:
    switches = {"use_sliding_window": True, "max_window_layers": 2} if family == "qwen2_moe" else {}
    config = AutoConfig.for_model(family, **switches)
    model = make_miniature(config, dtype=torch.float64, is_narrow=True).eval()
    found = []
    for attention in ("blocks", "flex"):
        path = ForwardPath(attention=attention)
        policy = Policy(model=model, compute_dtype=torch.float64, path=path)
        found.append(measure(policy, groups_for_check(), list(model.parameters())))
    assert found[1].minus(found[0]).is_within(Difference(nll=1e-6, gradient=1e-5))


def test_compiled_call_serves_more_lengths_than_torch_allows_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced as on a GPU, with torch's plain backend in place of its compiler."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled(function, backend="eager", **how))
    with torch._dynamo.config.patch(recompile_limit=2):
        _attend_to_rows_of_many_lengths(tree_mask._compiled.__wrapped__())


def _attend_to_rows_of_many_lengths(attend: Callable[..., Tensor]) -> None:
    for num_tokens in (100, 200, 300, 400):
        response = TrainedResponse(token_ids=(1, 2), advantage=1.0)
        group = TrainedGroup(prompt_ids=tuple(range(num_tokens)), responses=(response,))
        mask = TreeMask(collate([group], share_prefixes=True), device=CPU)
        query, key, value = (torch.randn(1, 1, mask.num_filled, 8) for _ in range(3))
        output = attend(query, key, value, block_mask=mask.block_mask(None), scale=1.0, enable_gqa=True)
        assert output.shape == query.shape
