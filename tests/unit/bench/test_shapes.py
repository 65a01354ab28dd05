"""Rollouts that benchmarks share: drawn the same everywhere, all of them with signal."""

import pytest
from asympo.bench.shapes import SHAPES, Shape, make_rollouts, num_true_tokens, parse_shape
from asympo.common.errors import BadSetting


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_rollouts_have_the_lengths_asked_for_and_signal_in_every_group(shape: Shape) -> None:
    rollouts = make_rollouts(shape, vocab_size=100)
    assert rollouts == make_rollouts(shape, vocab_size=100)
    assert len(rollouts) == shape.num_groups
    longest = max(len(ids) for rollout in rollouts for ids in rollout.responses)
    assert longest == shape.max_response_tokens
    for rollout in rollouts:
        assert len(rollout.prompt_ids) == shape.prompt_tokens
        assert len(rollout.responses) == shape.group_size
        assert all(1 <= len(ids) <= shape.max_response_tokens for ids in rollout.responses)
        assert all(0 <= token < 100 for ids in (rollout.prompt_ids, *rollout.responses) for token in ids)
        assert all(rollout.advantages)
        assert sum(rollout.advantages) == pytest.approx(0.0)


def test_true_tokens_count_the_prompt_once_for_each_response() -> None:
    shape = Shape(prompt_tokens=5, max_response_tokens=1, num_groups=3, group_size=4)
    assert num_true_tokens(make_rollouts(shape, vocab_size=9)) == 3 * 4 * (5 + 1)


def test_shape_is_parsed_with_and_without_a_group_size() -> None:
    assert parse_shape("64/256/2") == Shape(prompt_tokens=64, max_response_tokens=256, num_groups=2)
    assert parse_shape(SHAPES[0].name) == SHAPES[0]


@pytest.mark.parametrize("text", ["64/256", "a/b/c", "0/1/1", "1/1/1x1", "1/1/1/1"])
def test_shape_is_refused_with_the_form_that_would_be_right(text: str) -> None:
    with pytest.raises(BadSetting, match=text):
        parse_shape(text)
