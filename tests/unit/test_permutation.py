import pytest
from asympo.common.rollout_log.order.permutation import permuted_index

GOLDEN = [6, 8, 4, 9, 1, 7, 3, 5, 0, 2]


@pytest.mark.parametrize("num_prompts", [1, 2, 3, 4, 5, 16, 17, 320, 1000, 4097])
def test_permutation_draws_every_prompt_once_in_an_epoch(num_prompts: int) -> None:
    drawn = [
        permuted_index(seed=7, epoch=3, position=position, num_prompts=num_prompts)
        for position in range(num_prompts)
    ]
    assert sorted(drawn) == list(range(num_prompts))


def test_permutation_differs_between_seeds_and_epochs() -> None:
    orders = {
        tuple(permuted_index(seed=seed, epoch=epoch, position=p, num_prompts=100) for p in range(100))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_permutation_spreads_the_first_draw_over_all_prompts() -> None:
    firsts = [permuted_index(seed=seed, epoch=0, position=0, num_prompts=10) for seed in range(2000)]
    assert all(120 < firsts.count(index) < 290 for index in range(10))


def test_permutation_is_stable_across_releases() -> None:
    drawn = [permuted_index(seed=0, epoch=0, position=p, num_prompts=10) for p in range(10)]
    assert drawn == GOLDEN, "a changed order breaks the resume of every run: raise SCRIPT_VERSION with it"


@pytest.mark.parametrize("position", [-1, 10])
def test_permutation_refuses_a_position_outside_the_epoch(position: int) -> None:
    with pytest.raises(ValueError, match="is not between 0 and"):
        permuted_index(seed=0, epoch=0, position=position, num_prompts=10)
