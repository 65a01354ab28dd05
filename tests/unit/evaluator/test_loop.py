"""Which policies an evaluation measures."""

from pathlib import Path

import pytest
from asympo.common.checkpoints import PolicyRef
from asympo.common.rollout_log.evals.result import Estimate, EvalResult
from asympo.evaluator.loop import is_due

HALF = Estimate(value=0.5, low=0.4, high=0.6)


def result(step: int | None, *, fence: int | None = 1, last: int | None = None) -> EvalResult:
    return EvalResult(
        eval="e",
        policy_step=step,
        policy_fence=fence,
        last_policy_step=step if last is None else last,
        prompts=1,
        samples=1,
        mean=HALF,
        pass_at={1: HALF},
    )


@pytest.mark.parametrize(
    ("step", "fence", "before", "num_since", "is_over", "expected"),
    [
        (0, 1, None, 0, False, True),
        (4, 1, result(None), 9, False, True),
        (4, 1, result(4), 0, False, False),
        (6, 1, result(4), 1, False, False),
        (8, 1, result(4), 2, False, True),
        (6, 1, result(4), 1, True, True),
        (4, 1, result(4), 0, True, False),
        # Generators swapped meanwhile, and the last policy gave the last responses.
        (6, 1, result(4, fence=None, last=6), 1, True, False),
        (6, 1, result(4, fence=None, last=5), 1, True, True),
        # Its learner went back to step 2 and went on under another fence.
        (2, 2, result(4), 0, False, True),
        (5, 2, result(4), 1, False, False),
        (4, 2, result(4), 0, True, True),
        (4, 2, result(4, fence=2), 0, True, False),
    ],
)
def test_policies_are_due_every_so_often_and_at_the_end(
    step: int, fence: int, before: EvalResult | None, num_since: int, is_over: bool, expected: bool
) -> None:
    policy = PolicyRef(step=step, fence=fence, digest="d", path=Path("p"))
    assert is_due(policy, before, num_since=num_since, every=2, is_over=is_over) is expected
