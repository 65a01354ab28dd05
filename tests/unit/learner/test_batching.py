"""The row of a prefix tree against a tree of single tokens, and its attention calls against ancestors."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from asympo.common.records import ResponseSegment
from asympo.learner.model.attention import block_masks, plan_layout
from asympo.learner.model.batching import PackedBatch, TrainedGroup, TrainedResponse, collate
from asympo.learner.model.position_rule import PositionRule, position_rule
from transformers import LlamaConfig
from transformers.masking_utils import sliding_window_causal_mask_function

CPU = torch.device("cpu")
NUM_CASES = 150


def draw_groups(rng: random.Random) -> list[TrainedGroup]:
    """Two token ids: beginnings are shared, end inside each other and part again all the time."""
    return [
        TrainedGroup(
            prompt_ids=draw_tokens(rng),
            responses=tuple(draw_response(rng) for _ in range(rng.randint(1, 5))),
        )
        for _ in range(rng.randint(0, 4))
    ]


def draw_tokens(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(0, 1) for _ in range(rng.randint(1, 6)))


def draw_mask(rng: random.Random, token_ids: tuple[int, ...]) -> tuple[bool, ...] | None:
    mask = tuple(rng.random() < 0.6 for _ in token_ids)
    return mask if any(mask) and rng.random() < 0.5 else None


def draw_response(rng: random.Random) -> TrainedResponse:
    first, *further = (draw_tokens(rng) for _ in range(rng.choice((1, 1, 2, 4))))
    return TrainedResponse(
        token_ids=first,
        advantage=rng.choice([-1.0, 0.5]),
        trained_token_mask=draw_mask(rng, first),
        segments=tuple(
            ResponseSegment(
                context_ids=draw_tokens(rng), token_ids=ids, trained_token_mask=draw_mask(rng, ids)
            )
            for ids in further
        ),
    )


def sequences_of(
    group: TrainedGroup, response: TrainedResponse
) -> list[tuple[tuple[int, ...], TrainedResponse | ResponseSegment]]:
    return [(group.prompt_ids, response), *((each.context_ids, each) for each in response.segments)]


@dataclass(eq=False)
class Token:
    """A node of the plain tree."""

    token_id: int
    depth: int
    children: "list[Token]" = field(default_factory=list)
    index: int = -1
    subtree_end: int = -1

    def below(self, token_id: int, *, share: bool) -> "Token":
        found = next((child for child in self.children if share and child.token_id == token_id), None)
        if found is None:
            found = Token(token_id, self.depth + 1)
            self.children.append(found)
        return found

    def number(self, row: "list[Token]") -> None:
        for child in self.children:
            child.index = len(row)
            row.append(child)
            child.number(row)
            child.subtree_end = len(row)


def plainly(groups: list[TrainedGroup], *, share: bool) -> dict[str, list[int]]:
    """What a row is, token by token."""
    root = Token(-1, -1)
    row: list[Any] = []
    trained: list[Any] = []
    all_responses = [(group, response) for group in groups for response in group.responses]
    for number, (group, response) in enumerate(all_responses):
        for context, part in sequences_of(group, response):
            node = root
            for token_id in context:
                node = node.below(token_id, share=share)
            mask = part.trained_token_mask or (True,) * len(part.token_ids)
            for position, token_id in enumerate(part.token_ids):
                if mask[position]:
                    trained.append((node, token_id, number))
                if position + 1 < len(part.token_ids):
                    node = node.below(token_id, share=share)
    root.number(row)
    trained.sort(key=lambda item: item[0].index)
    sources = sorted({node.index for node, _, _ in trained})
    return {
        "token_ids_T": [node.token_id for node in row],
        "position_ids_T": [node.depth for node in row],
        "subtree_end_T": [node.subtree_end for node in row],
        "source_U": sources,
        "row_N": [sources.index(node.index) for node, _, _ in trained],
        "target_N": [token_id for _, token_id, _ in trained],
        "response_N": [number for _, _, number in trained],
        "num_trained_R": [sum(number == r for _, _, number in trained) for r in range(len(all_responses))],
        "advantage_R": [response.advantage for _, response in all_responses],
    }


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
def test_row_is_that_of_a_tree_of_single_tokens(share: bool) -> None:
    for seed in range(NUM_CASES):
        groups = draw_groups(random.Random(seed))
        batch = collate(groups, share_prefixes=share)
        for name, expected in plainly(groups, share=share).items():
            assert list(getattr(batch, name)) == expected, (seed, name)
        assert batch.sequences_R == [(g.prompt_ids, r.token_ids) for g in groups for r in g.responses]
        assert batch.num_sequences == sum(1 + len(r.segments) for g in groups for r in g.responses)


def nearer_than(window: int | None, *, is_known: bool = True) -> PositionRule | None:
    """As transformers states it, in a config that says so or not."""
    if window is None:
        return None
    rule = position_rule(
        mask_function=sliding_window_causal_mask_function(window),
        config=LlamaConfig(sliding_window=window if is_known else window + 1),  # type: ignore[call-arg]
    )
    assert rule is not None
    assert rule.window == (window if is_known else None)
    return rule


def attended(batch: PackedBatch, *, max_block: int, window: int | None, is_known: bool = True) -> np.ndarray:
    """Which keys the attention calls let each query see, `[T, T]`."""
    layout = plan_layout(batch, device=CPU, max_block=max_block)
    assert [q for block in layout.blocks for q in range(*block.query)] == list(range(batch.num_tokens))
    seen = np.zeros((batch.num_tokens, batch.num_tokens), dtype=bool)
    masks = block_masks(layout, dtype=torch.float32, rule=nearer_than(window, is_known=is_known))
    for block, mask in zip(layout.blocks, masks, strict=True):
        keys = [key for part in block.keys for key in range(*part)]
        assert len(range(*block.query)) <= max_block
        if mask is None:
            assert keys == list(range(*block.query))
            mask = torch.full((len(keys), len(keys)), float("-inf")).triu(1)
        assert set(mask.unique().tolist()) <= {0.0, float("-inf")}
        seen[np.ix_(range(*block.query), keys)] = (mask == 0).numpy()
    return seen


@pytest.mark.parametrize(("window", "is_known"), [(None, False), (2, True), (2, False)])
@pytest.mark.parametrize("max_block", [1, 4, 1000])
def test_each_token_attends_to_its_ancestors_within_the_window(
    max_block: int, window: int | None, is_known: bool
) -> None:
    for seed in range(NUM_CASES // 5):
        batch = collate(draw_groups(random.Random(seed)), share_prefixes=bool(seed % 4))
        key, query = np.meshgrid(np.arange(batch.num_tokens), np.arange(batch.num_tokens))
        expected = (key <= query) & (query < batch.subtree_end_T[key])
        assert batch.num_pairs == expected.sum()
        if window is not None:
            expected &= batch.position_ids_T[query] - batch.position_ids_T[key] < window
        assert (attended(batch, max_block=max_block, window=window, is_known=is_known) == expected).all(), (
            seed
        )
