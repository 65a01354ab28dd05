"""The schedule is a pure function of seed and number, and has enough of everything."""

from collections import Counter

import pytest
from asympo.chaos.schedule import (
    ALWAYS_IN,
    KINDS_OF_WINDOW,
    MIN_IN_WINDOW,
    MIN_OF_EACH,
    FaultKind,
    Window,
    make_schedule,
    minimum_for,
    reachable_windows,
)

ALL = list(FaultKind)


def test_schedule_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    one, again, other = (make_schedule(num_faults=40, seed=seed, kinds=ALL) for seed in (3, 3, 4))
    assert one == again
    assert [fault.kind for fault in one] != [fault.kind for fault in other]


@pytest.mark.parametrize("seed", range(5))
def test_full_schedule_has_the_minimum_of_every_kind_and_window(seed: int) -> None:
    faults = make_schedule(num_faults=200, seed=seed, kinds=ALL)
    kinds, windows = Counter(fault.kind for fault in faults), Counter(fault.window for fault in faults)
    assert len(faults) >= 200
    assert min(kinds[kind] for kind in ALL) >= MIN_OF_EACH
    assert min(windows[window] for window in Window) >= MIN_IN_WINDOW


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_faults", [14, 20, 30, 60])
def test_short_schedule_has_every_kind_and_keeps_its_own_minimum(num_faults: int, seed: int) -> None:
    faults = make_schedule(num_faults=num_faults, seed=seed, kinds=ALL)
    least = minimum_for(num_faults, ALL)
    kinds, windows = Counter(fault.kind for fault in faults), Counter(fault.window for fault in faults)
    assert least.of_each >= 1
    assert least.in_window >= 1
    assert len(faults) == num_faults
    assert min(kinds[kind] for kind in ALL) >= least.of_each
    assert min(windows[window] for window in Window) >= least.in_window


def test_schedule_puts_a_kind_only_into_windows_that_it_can_hit() -> None:
    for fault in make_schedule(num_faults=200, seed=2, kinds=ALL):
        if fault.window is not None and fault.kind not in ALWAYS_IN:
            assert fault.kind in KINDS_OF_WINDOW[fault.window]


def test_schedule_of_few_kinds_asks_for_no_window_out_of_their_reach() -> None:
    kinds = [FaultKind.DUPLICATE_APPEND, FaultKind.ZOMBIE_LEARNER]
    assert reachable_windows(kinds) == [Window.SAVE_COMMIT]
    faults = make_schedule(num_faults=4, seed=0, kinds=kinds)
    assert Counter(fault.kind for fault in faults) == dict.fromkeys(kinds, 2)
