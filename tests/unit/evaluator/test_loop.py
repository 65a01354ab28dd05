"""Which policies an evaluation measures."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.checkpoints import PolicyRef
from asympo.common.errors import BrokerFull, BrokerRefused, NoProgress, PromptRefused
from asympo.common.rollout_log import RunState
from asympo.common.rollout_log.broker.calls import Calls
from asympo.common.rollout_log.evals.result import Estimate, EvalResult
from asympo.evaluator import loop as module
from asympo.evaluator.loop import EvaluationLoop, EvaluatorStatus, is_due
from asympo.evaluator.measure import Measured
from asympo.evaluator.retries import Retries
from asympo.evaluator.settings import EvaluatorSettings

LAST = PolicyRef(step=4, fence=1, digest="d", path=Path("p"))
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


@pytest.fixture
def at_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A loop over one evaluation of a run that has ended, in which every wait takes a minute."""
    now = 0.0

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def wait(*_: Any, **__: Any) -> None:
        spend(60.0)

    def make(measured: Callable[..., Any]) -> Any:
        loop: Any = loop_of("e", monkeypatch=monkeypatch, measured=measured)
        loop._run_log = SimpleNamespace(
            policies=SimpleNamespace(latest=lambda: None, num_after=lambda _: 0, bad=lambda: []),
            state=SimpleNamespace(get=lambda: RunState.FINISHED, run_id=lambda: ""),
            evaluations=SimpleNamespace(after=lambda: ([], "")),
        )
        loop._progress, loop._calls, loop._retries = EvaluatorStatus(), CALLS, Retries(clock=lambda: now)
        loop._settings = EvaluatorSettings(run="r", exit_when_run_ends=True)
        loop._metrics = SimpleNamespace(failed=lambda _: None)
        loop._wait_for_news, loop.spend = wait, spend
        loop._store = SimpleNamespace(path="p", newest=lambda **_: LAST)
        return loop

    with monkeypatch.context() as patch:
        patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
        yield make


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
    failures: list[Exception], expected: list[str], at_end: Callable[..., Any]
) -> None:
    asked: list[str] = []

    async def measured(prepared: Any, *_: Any) -> Any:
        asked.append(prepared.config.name)
        if failures:
            raise failures.pop()
        loop._progress.newest["e"] = result(4)
        return SimpleNamespace(result=result(4))

    loop = at_end(measured)
    await loop.run()
    assert asked == expected


@pytest.mark.asyncio
@pytest.mark.parametrize(("num_failures", "is_measured"), [(2, True), (9, False)])
async def test_last_policy_is_measured_although_the_store_fails_for_a_while(
    num_failures: int, is_measured: bool, at_end: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    failures = [OSError("stale file handle")] * num_failures

    def newest(**_: Any) -> PolicyRef:
        if failures:
            raise failures.pop()
        return LAST

    async def measured(*_: Any) -> Any:
        loop._progress.newest["e"] = result(4)
        return SimpleNamespace(result=result(4))

    loop = at_end(measured)
    loop._store.newest = newest
    await loop.run()
    assert ("e" in loop._progress.newest) is is_measured
    assert "cannot be read, which is tried again in 10 s: stale file handle" in caplog.messages[0]
    is_told = (
        caplog.messages[-1] == "The policies could not be read for 180 s: the last one may not be measured"
    )
    assert (is_told, bool(failures)) == (not is_measured, not is_measured)


@pytest.mark.asyncio
@pytest.mark.parametrize("num_failures", [0, 1])
async def test_store_that_fails_once_after_a_long_evaluation_ends_nothing(
    num_failures: int, at_end: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    num_asked, failures = 0, [OSError("stale file handle")]

    def newest(**_: Any) -> PolicyRef:
        if num_asked and failures:
            raise failures.pop()
        return LAST

    async def measured(*_: Any) -> Any:
        nonlocal num_asked
        num_asked += 1
        loop.spend(200.0)
        if num_asked <= num_failures:
            raise NoProgress("no answer")
        loop._progress.newest["e"] = result(4)
        return SimpleNamespace(result=result(4))

    loop = at_end(measured)
    loop._store.newest = newest
    await loop.run()
    assert (num_asked, "e" in loop._progress.newest) == (num_failures + 1, True)
    assert not any("the last" in each.lower() for each in caplog.messages)


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
