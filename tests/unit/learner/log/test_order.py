"""The order by success: who rests, for how long, and that nothing but what was consumed decides it."""

import pytest
from asympo.common.errors import CorruptCheckpoint
from asympo.learner.log.order import SuccessOrder

NUM_PROMPTS = 1000


def resting(order: SuccessOrder, epoch: int) -> set[int]:
    bits = order.resting(epoch)
    return {index for index in range(NUM_PROMPTS) if bits[index >> 3] >> (index & 7) & 1}


@pytest.mark.parametrize(("num_in_a_row", "every"), [(1, 2), (2, 4), (3, 8), (9, 8)])
def test_prompts_get_rarer_with_each_group_without_signal(num_in_a_row: int, every: int) -> None:
    order = SuccessOrder(num_prompts=NUM_PROMPTS, seed=3)
    solved = set(range(0, NUM_PROMPTS, 2))
    for epoch in range(num_in_a_row):
        order.consumed((f"{epoch}-{index}", False) for index in solved)
    rests = [resting(order, epoch) for epoch in range(20, 20 + every)]
    assert all(each <= solved for each in rests)
    for index in solved:
        assert sum(index in each for each in rests) == every - 1
    # Each epoch asks about the same share of them.
    assert all(abs(len(solved) - len(each) - len(solved) / every) < len(solved) / 10 for each in rests)


def test_one_group_with_signal_ends_the_rest() -> None:
    order = SuccessOrder(num_prompts=NUM_PROMPTS, seed=3)
    order.consumed([(f"{epoch}-7", False) for epoch in range(5)] + [("5-7", True), ("agents/1", False)])
    assert not any(resting(order, epoch) for epoch in range(8))


def test_epoch_that_would_ask_nothing_asks_everything() -> None:
    order = SuccessOrder(num_prompts=1, seed=0)
    order.consumed((f"{epoch}-0", False) for epoch in range(3))
    assert [order.resting(epoch) for epoch in range(8)] == [b"\0"] * 8


def test_it_goes_on_from_its_bytes_and_refuses_others() -> None:
    order = SuccessOrder(num_prompts=NUM_PROMPTS, seed=-3)
    order.consumed((f"0-{index}", index % 3 == 0) for index in range(NUM_PROMPTS))
    again = SuccessOrder(num_prompts=NUM_PROMPTS, seed=-3, streaks=order.to_bytes())
    assert again.resting(4) == order.resting(4)
    for damaged in (order.to_bytes()[1:], b"\xff" * NUM_PROMPTS):
        with pytest.raises(CorruptCheckpoint, match="how long each prompt was without signal"):
            SuccessOrder(num_prompts=NUM_PROMPTS, seed=-3, streaks=damaged)
