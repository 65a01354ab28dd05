"""Who trains what: everything exactly once, evenly, and the same on every rank."""

import random

import pytest
from asympo.common.errors import BadSetting
from asympo.learner.model.batching import TrainedGroup, TrainedResponse, num_input_tokens
from asympo.learner.step.shares import share_out
from asympo.learner.torchrun import Launch


def make_group(*lengths: int, prompt: int = 5) -> TrainedGroup:
    responses = tuple(TrainedResponse(token_ids=(1,) * length, advantage=0.5) for length in lengths)
    return TrainedGroup(prompt_ids=(2,) * prompt, responses=responses)


def cost(groups: dict[int, TrainedGroup], shares: tuple) -> int:  # type: ignore[type-arg]
    return sum(num_input_tokens(share.of(groups[share.sequence]), share_prefixes=True) for share in shares)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_every_response_goes_to_exactly_one_rank_and_loads_are_level(num_ranks: int) -> None:
    rng = random.Random(num_ranks)
    groups = {
        sequence: make_group(*(rng.randint(1, 60) for _ in range(rng.randint(1, 8))))
        for sequence in range(10, 34)
    }
    shares = share_out(list(groups.items()), num_ranks=num_ranks, share_prefixes=True)
    assert len(shares) == num_ranks
    dealt = [(share.sequence, index) for rank in shares for share in rank for index in share.responses]
    assert sorted(dealt) == sorted(
        (sequence, index) for sequence, group in groups.items() for index in range(len(group.responses))
    )
    loads = [cost(groups, rank) for rank in shares]
    largest = max(num_input_tokens(group, share_prefixes=True) for group in groups.values())
    assert max(loads) - min(loads) <= largest


def test_group_larger_than_a_fair_share_is_split_between_its_responses() -> None:
    groups = {1: make_group(40, 40, 40, 40), 2: make_group(3, 3)}
    shares = share_out(list(groups.items()), num_ranks=2, share_prefixes=True)
    loads = [cost(groups, rank) for rank in shares]
    assert max(loads) < 1.3 * min(loads)


def test_ranks_without_work_get_an_empty_share() -> None:
    assert share_out([(1, make_group(4))], num_ranks=3, share_prefixes=True)[1:] == [(), ()]


def test_launch_reads_what_torchrun_sets() -> None:
    assert Launch.from_environment({}).is_alone
    launch = Launch.from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    assert (launch.rank, launch.num_ranks, launch.local_rank, launch.num_restarts) == (3, 4, 1, 0)
    with pytest.raises(BadSetting, match="WORLD_SIZE"):
        Launch.from_environment({"RANK": "4", "WORLD_SIZE": "4"})
    with pytest.raises(BadSetting, match="numbers"):
        Launch.from_environment({"RANK": "x", "WORLD_SIZE": "4"})
