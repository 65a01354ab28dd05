"""Small model and real scripts agree, action by action, on random histories and on counterexamples."""

import random

import pytest
from asympo.common.rollout_log import Broker, RunLog

from tests.protocol.conform import RealLog
from tests.protocol.model import Protocol, Rules
from tests.protocol.search import search
from tests.unit.test_log_model import MUTANTS

NUM_WALKS, NUM_ACTIONS = 16, 40
ENDS = ("crash", "forget", "expire", "copy", "restart")


@pytest.mark.parametrize("seed", range(NUM_WALKS))
def test_scripts_do_what_the_model_does(broker: Broker, run_name: str, seed: int) -> None:
    rules = Rules(
        capacity=1 + seed % 2,
        max_staleness=1,
        max_tokens=20,
        max_fences=8,
        may_roll_back=seed % 3 == 2,
        may_restart=seed % 3 == 1,
    )
    real, rng = RealLog(RunLog(broker, run_name), rules), random.Random(seed)
    try:
        for _ in range(NUM_ACTIONS):
            names = [name for name, _after in Protocol(rules).actions(real.state)]
            if not names:
                break
            # What brings a history forward is drawn more often than what ends it.
            weights = [1 if name.split()[0] in ENDS else 4 for name in names]
            assert real.do(rng.choices(names, weights)[0])
        assert real.state.broker.last > 0
    finally:
        real.log.state.delete()


ZOMBIE_SAVES_LESS_UNDER_A_HIGHER_FENCE = (
    "take_over 1, lease 0, append 0, take_over 0, train 0, lease 0, append 0, publish 0, train 0, crash 1, "
    "take_over 1, save 0, train 0, train 1, take_over 0, save 1, crash 1, crash 0, take_over 1"
)
"""Found by a walk: the state of the highest fence covers less than what is committed."""

COMMITTED_BEYOND_A_LEARNER_AND_STILL_IN_THE_LOG = (
    "take_over 1, lease 1, append 1, take_over 0, copy, train 1, train 0, publish 0, take_over 1, roll_back, "
    "save 0, reconcile 0, reconcile 1"
)
"""Found by a walk: a prompt was issued again though its entry was still to be read."""


def test_prompt_in_the_log_is_not_issued_again_when_another_learner_committed_it(
    broker: Broker, run_name: str
) -> None:
    rules = Rules(capacity=1, max_staleness=1, max_tokens=20, max_fences=8, may_roll_back=True)
    real = RealLog(RunLog(broker, run_name), rules)
    for name in COMMITTED_BEYOND_A_LEARNER_AND_STILL_IN_THE_LOG.split(", "):
        assert real.do(name), name
    assert real.log.stats.read().reissue == 0
    assert real.log.stats.read().open == 1
    real.log.state.delete()


def test_learner_resumes_from_what_is_committed_though_a_zombie_saved_less_later(
    broker: Broker, run_name: str
) -> None:
    rules = Rules(capacity=2, max_staleness=1, max_tokens=20, max_fences=8)
    real = RealLog(RunLog(broker, run_name), rules)
    for name in ZOMBIE_SAVES_LESS_UNDER_A_HIGHER_FENCE.split(", "):
        assert real.do(name), name
    learner = real.state.learners[1]
    assert learner is not None
    assert (learner.sequence, real.log.stats.read().committed_sequence) == (2, 2)
    assert {saved.fence: saved.sequence for saved in real.state.disk} == {2: 2, 3: 1}
    real.log.state.delete()


@pytest.mark.parametrize("mutant", MUTANTS)
def test_scripts_survive_what_breaks_a_mutant(broker: Broker, run_name: str, mutant: str) -> None:
    """The shortest way to break the mutant, on the real scripts, then everything that could come next."""
    rules = Rules()
    found = search(Rules(**MUTANTS[mutant][0]), max_states=9_000)
    assert found.trace
    real = RealLog(RunLog(broker, run_name), rules)
    try:
        done = [name for name in found.trace if real.do(name)]
        assert done
        if mutant == "no fence":
            assert real.refuses_zombies()
        if mutant == "no second announcement":
            assert real.do("reconcile 0")
            assert real.do("lease 0")
        for name, _after in list(Protocol(rules).actions(real.state)):
            if name.startswith(("append", "take_over", "lease", "train")):
                real.do(name)
    finally:
        real.log.state.delete()
