"""Every interleaving of a small rollout log keeps the promises; without one of its safeguards it does not."""

from typing import Any

import pytest

from tests.protocol.model import Rules
from tests.protocol.search import search

MUTANTS: dict[str, tuple[dict[str, Any], str]] = {
    "no dedupe": ({"has_dedupe": False}, "answered twice"),
    "no fence": ({"has_fence": False}, "zombie"),
    "free before publish": ({"frees_after_publish": False}, "policies late"),
    "no reconcile": ({"has_reconcile": False}, "nothing can happen"),
    "no second announcement": ({"announces_again": False, "may_roll_back": True}, "nothing can happen"),
    "no held slots": (
        {"keeps_held": False, "may_restart": True, "num_generators": 1, "num_learners": 1, "max_tokens": 2},
        "policies late",
    ),
}


@pytest.mark.parametrize(
    ("rules", "min_depth"),
    [
        (Rules(), 10),
        (Rules(capacity=2, max_staleness=1), 8),
        (Rules(may_roll_back=True, max_tokens=3), 7),
        (Rules(may_restart=True, num_learners=1, max_fences=1), 10),
    ],
    ids=["synchronous", "asynchronous", "broker that goes back", "broker that restarts"],
)
def test_no_interleaving_breaks_a_promise(rules: Rules, min_depth: int) -> None:
    found = search(rules, max_states=9_000)
    assert not found.violation, (found.violation, found.trace)
    assert found.is_complete or (found.num_states > 9_000 and found.depth >= min_depth)


@pytest.mark.parametrize("name", MUTANTS)
def test_each_safeguard_is_needed(name: str) -> None:
    switched_off, expected = MUTANTS[name]
    found = search(Rules(**switched_off), max_states=9_000)
    assert expected in found.violation, found
    assert len(found.trace) <= 10
