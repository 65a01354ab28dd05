"""Which policies an evaluation measures."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.checkpoints import PolicyRef
from asympo.common.rollout_log.evals.result import Estimate, EvalResult
from asympo.evaluator.loop import EvaluationLoop, is_due

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


@pytest.mark.asyncio
@pytest.mark.parametrize(("step", "expected"), [(4, True), (None, False)])
async def test_what_told_no_policy_is_not_measured_again_at_once(
    step: int | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any) -> None:
        """No broker is asked."""

    async def measured(*_: Any) -> Any:
        return SimpleNamespace(result=result(step))

    some: Any = SimpleNamespace(open=nothing)
    loop = EvaluationLoop(
        settings=some, run_log=some, store=some, source=some, chosen=(),
        progress=some, metrics=some, calls=some, writer=None,
    )  # fmt: skip
    prepared: Any = SimpleNamespace(config=SimpleNamespace(name="e"))
    loop._prepared = [prepared]
    for name, stand_in in (("_report_held", nothing), ("_keep", nothing), ("_measure", measured)):
        monkeypatch.setattr(loop, name, stand_in)
    policy: Any = SimpleNamespace(step=4)
    assert await loop._measure_due(policy, ["e"]) is expected
