"""Which policies an evaluation measures."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.checkpoints import PolicyRef
from asympo.common.errors import BrokerFull, BrokerRefused, NoProgress, PromptRefused
from asympo.common.rollout_log import RunState
from asympo.common.rollout_log.broker.calls import Calls
from asympo.common.rollout_log.evals.result import Estimate, EvalResult
from asympo.evaluator.loop import EvaluationLoop, EvaluatorStatus, is_due
from asympo.evaluator.measure import Measured
from asympo.evaluator.retries import Retries
from asympo.evaluator.settings import EvaluatorSettings

CALLS = Calls(max_threads=1, on_broker_error=lambda: None)
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


async def nothing(*_: Any) -> None:
    """No broker is asked."""


def loop_of(*names: str, monkeypatch: pytest.MonkeyPatch, measured: Callable[..., Any]) -> EvaluationLoop:
    """A loop over evaluations of these names, whose prompts are rendered."""
    some: Any = SimpleNamespace(open=nothing, failed=lambda _: None)
    chosen: Any = [SimpleNamespace(config=SimpleNamespace(name=name, every=1)) for name in names]
    loop = EvaluationLoop(
        settings=some, run_log=some, run_id="", store=some, source=some, chosen=chosen,
        progress=some, metrics=some, calls=some, writer=None,
    )  # fmt: skip
    loop._prepared = {each.config.name: each for each in chosen}
    for name, stand_in in (("_report_held", nothing), ("_keep", nothing), ("_measure", measured)):
        monkeypatch.setattr(loop, name, stand_in)
    return loop


@pytest.mark.asyncio
@pytest.mark.parametrize(("step", "expected"), [(4, True), (None, False)])
async def test_what_told_no_policy_is_not_measured_again_at_once(
    step: int | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measured(*_: Any) -> Any:
        return SimpleNamespace(result=result(step))

    loop = loop_of("e", monkeypatch=monkeypatch, measured=measured)
    policy: Any = SimpleNamespace(step=4, name="step-4")
    assert await loop._measure_due(policy, ["e"]) is expected


@pytest.mark.asyncio
async def test_policy_is_measured_although_no_report_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BrokerRefused("no permission")

    loop: Any = loop_of("e", monkeypatch=monkeypatch, measured=nothing)
    loop._run_log = SimpleNamespace(presence=SimpleNamespace(report=refuse))
    loop._calls = CALLS
    policy: Any = SimpleNamespace(step=4, fence=1, name="step-4")
    for _ in range(2):
        await EvaluationLoop._report_held(loop, policy)
    assert len(caplog.messages) == 1


@pytest.mark.asyncio
async def test_result_is_told_although_a_full_broker_takes_no_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: Any) -> None:
        raise BrokerFull("no room")

    told: list[EvalResult] = []
    loop: Any = loop_of("e", monkeypatch=monkeypatch, measured=nothing)
    loop._run_log = SimpleNamespace(evaluations=SimpleNamespace(add_sample=refuse, add=told.append))
    loop._metrics = SimpleNamespace(measured=lambda _: None)
    loop._progress, loop._calls = EvaluatorStatus(), CALLS
    sample: Any = SimpleNamespace(eval="e")
    await EvaluationLoop._keep(loop, Measured(result=result(4), samples=(sample, sample)))
    assert [each.policy_step for each in told] == [4]


@pytest.mark.asyncio
async def test_store_is_not_listed_again_at_each_wait_for_an_announcement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = [RunState.RUNNING] * 3 + [RunState.FINISHED]
    loop: Any = loop_of("e", monkeypatch=monkeypatch, measured=nothing)
    get, wait = (lambda: states.pop(0)), (lambda *_: None)
    loop._run_log = SimpleNamespace(policies=SimpleNamespace(wait=wait), state=SimpleNamespace(get=get))
    loop._calls, loop._settings = CALLS, EvaluatorSettings(run="r", policy_poll_seconds=1e6)
    await loop._wait_for_news(None, is_over=False)
    assert not states


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([NoProgress("no answer")], ["e", "e"]),
        ([NoProgress("no answer")] * 9, ["e"] * 3),
        ([PromptRefused("too long")], ["e"]),
    ],
)
async def test_last_policy_is_tried_again_before_the_evaluator_leaves(
    failures: list[Exception], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    now = 0.0

    async def measured(prepared: Any, *_: Any) -> Any:
        asked.append(prepared.config.name)
        if failures:
            raise failures.pop()
        loop._progress.newest["e"] = result(4)
        return SimpleNamespace(result=result(4))

    async def wait(*_: Any, **__: Any) -> None:
        nonlocal now
        now += 60.0

    async def newest() -> PolicyRef:
        return PolicyRef(step=4, fence=1, digest="d", path=Path("p"))

    loop: Any = loop_of("e", monkeypatch=monkeypatch, measured=measured)
    loop._run_log = SimpleNamespace(
        policies=SimpleNamespace(latest=lambda: None, num_after=lambda _: 0),
        state=SimpleNamespace(get=lambda: RunState.FINISHED, run_id=lambda: ""),
        evaluations=SimpleNamespace(after=lambda: ([], "")),
    )
    loop._progress, loop._calls, loop._retries = EvaluatorStatus(), CALLS, Retries(clock=lambda: now)
    loop._settings = EvaluatorSettings(run="r", exit_when_run_ends=True)
    loop._metrics = SimpleNamespace(failed=lambda _: None)
    loop._wait_for_news, loop._newest_policy = wait, newest
    await loop.run()
    assert asked == expected


@pytest.mark.asyncio
async def test_one_evaluation_that_fails_holds_up_no_other_and_waits_before_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    async def measured(prepared: Any, *_: Any) -> Any:
        asked.append(prepared.config.name)
        if prepared.config.name == "fails":
            raise NoProgress("no answer")
        return SimpleNamespace(result=result(4))

    now = 0.0
    loop = loop_of("fails", "works", monkeypatch=monkeypatch, measured=measured)
    loop._retries = Retries(clock=lambda: now)
    policy: Any = SimpleNamespace(step=4, name="step-4")
    assert await loop._measure_due(policy, ["fails", "works"])
    assert asked == ["fails", "works"]
    assert loop._retries.is_too_early("fails", "step-4")
    assert not loop._retries.is_too_early("works", "step-4")
    assert not loop._retries.is_too_early("fails", "step-5")
    now = 60.0
    assert not loop._retries.is_too_early("fails", "step-4")
    assert not await loop._measure_due(policy, ["fails"])
    now = 179.0
    assert loop._retries.is_too_early("fails", "step-4")
