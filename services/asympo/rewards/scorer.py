"""Guarded scoring: processes that can be killed, a time limit for each call."""

import dataclasses
import math
import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

from asympo.common.errors import BadSetting
from asympo.rewards.code import seconds_of_call
from asympo.rewards.concurrent import ConcurrentWorker
from asympo.rewards.conventions.base import FailureKind, FunctionOutcome, failed
from asympo.rewards.process import WorkerGone, WorkerProcess
from asympo.rewards.progress import RunProgress
from asympo.rewards.token_ids import pack_ids
from asympo.tasks.base import TaskPrompt
from asympo.tasks.config import TaskConfig
from asympo.tasks.reward_config import RewardConfig

MAX_CALLS_AT_ONCE = 512
"""Of `async` functions; more wait for their turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreFailure:
    """One response could not be scored; the others of its group can."""

    kind: FailureKind
    """A closed set, for metric labels."""
    reason: str
    """One sentence for people."""
    functions: dict[str, float | None] = field(default_factory=dict)
    """Values of those functions that have one."""


MAX_EXTRA_NAME_CHARS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What one response earned."""

    reward: float
    """The weighted sum of the functions that apply."""
    functions: dict[str, float | None] = field(default_factory=dict)
    """Value of each function, None where it does not apply; empty without functions of the settings."""
    extras: dict[str, Any] = field(default_factory=dict)
    """What else the functions said of it, as `function/name`."""


Score = Scored | ScoreFailure


class Scorer:
    """Scores responses of one task in `num_workers` processes; thread-safe.

    The constructor waits until the processes are ready, and raises BadSetting when they refuse the task.
    `allow_python` comes from this process's own settings, never from the run: scoring that names Python
    code is then loaded, in the scoring processes only. With `columns`, those of the task's rows, functions
    that need another one are refused.
    """

    def __init__(
        self,
        *,
        task: TaskConfig,
        timeout_seconds: float,
        num_workers: int = 1,
        allow_python: bool = False,
        columns: Sequence[str] | None = None,
    ) -> None:
        if timeout_seconds <= 0 or num_workers < 1:
            raise BadSetting("scoring needs a time limit above 0 and at least one worker")
        self._rewards = task.rewards or (_OWN,)
        self._has_functions = bool(task.rewards)
        self._timeout_seconds = timeout_seconds
        self._is_closed = False
        settings: dict[str, Any] = {
            "task": task.model_dump(mode="json"),
            "allow_python": allow_python,
            "columns": columns,
            "concurrent": False,
        }
        self._workers = [WorkerProcess(settings) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="scorer")
        self._concurrent = ConcurrentWorker(settings)
        self._waiting = ThreadPoolExecutor(MAX_CALLS_AT_ONCE, thread_name_prefix="scorer-async")
        try:
            list(self._threads.map(WorkerProcess.start, self._workers))
            self._kinds = self._workers[0].ready
            if any(kind["is_async"] for kind in self._kinds):
                self._concurrent.start()
        except BaseException:
            self.close()
            raise
        for worker in self._workers:
            self._idle.put(worker)

    @property
    def wants_token_ids(self) -> bool:
        """Whether a function looks at the token ids of a response."""
        return any(kind["wants_token_ids"] for kind in self._kinds)

    def score(
        self,
        prompt: TaskPrompt,
        texts: Sequence[str],
        *,
        token_ids: Sequence[Sequence[int]] = (),
        progress: RunProgress = RunProgress(),  # noqa: B008  frozen
    ) -> list[Score]:
        """Rewards of the responses to one prompt, in order; blocks. A response that fails fails alone.

        `progress`: for functions that ask.
        """
        request = {
            "prompt": {field.name: getattr(prompt, field.name) for field in dataclasses.fields(prompt)},
            "texts": list(texts),
            "token_ids": [pack_ids(ids) for ids in token_ids] if self.wants_token_ids else [],
            "progress": dataclasses.asdict(progress),
        }
        table: list[list[FunctionOutcome]] = [[_CLOSED] * len(texts) for _ in self._rewards]
        try:
            for future in [future for jobs in self._start(request) for future in jobs]:
                for number, places, outcomes in future.result():
                    for place, outcome in zip(places, outcomes, strict=True):
                        table[number][place] = outcome
        except RuntimeError:
            # The pools take no work once close() has begun.
            if not self._is_closed:
                raise
        return [self._sum([row[place] for row in table]) for place in range(len(texts))]

    def _start(self, request: dict[str, Any]) -> Iterator[list["Future[_Answers]"]]:
        """Begins every call of a group: those that block split over the workers, the others at once."""
        everybody = list(range(len(request["texts"])))
        blocking: list[_Call] = []
        for number, kind in enumerate(self._kinds):
            calls = (
                [(number, everybody)] if kind["takes_group"] else [(number, [place]) for place in everybody]
            )
            if kind["is_async"]:
                yield [self._waiting.submit(self._ask_concurrent, request, call) for call in calls]
            else:
                blocking += calls
        shares = [blocking[first :: len(self._workers)] for first in range(len(self._workers))]
        yield [self._threads.submit(self._ask, request, share) for share in shares if share]

    def close(self) -> None:
        """Kill the processes; responses being scored fail. Idempotent."""
        self._is_closed = True
        for worker in self._workers:
            worker.close()
        self._concurrent.close()
        self._threads.shutdown(wait=True)
        self._waiting.shutdown(wait=True)
        for worker in self._workers:
            worker.stop()
        self._concurrent.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _limit_seconds(self, number: int, request: dict[str, Any]) -> float:
        """For one call of a function."""
        reward = self._rewards[number]
        if reward.timeout_seconds is None and reward.function == "code":
            return max(self._timeout_seconds, seconds_of_call(reward.options, request["prompt"]["columns"]))
        return reward.timeout_seconds or self._timeout_seconds

    # --- functions that block --------------------------------------------------------------------------

    def _ask(self, request: dict[str, Any], calls: Sequence["_Call"]) -> "_Answers":
        # As many threads as workers: there is always one.
        worker = self._idle.get()
        try:
            answers: _Answers = []
            while len(answers) < len(calls):
                answers += self._ask_worker(worker, request, calls[len(answers) :])
            return answers
        finally:
            self._idle.put(worker)

    def _ask_worker(
        self, worker: WorkerProcess, request: dict[str, Any], calls: Sequence["_Call"]
    ) -> "_Answers":
        """Answers to these calls as far as the first that goes wrong, at least one."""
        answers: _Answers = []

        def fail(kind: FailureKind, reason: str) -> "_Answers":
            number, places = calls[len(answers)]
            return [*answers, (number, places, [self._failed(kind, reason)] * len(places))]

        limit_seconds = self._limit_seconds(calls[0][0], request)
        try:
            if not worker.is_running:
                worker.start()
            worker.tell({**request, "calls": calls}, timeout_seconds=limit_seconds)
            for number, places in calls:
                limit_seconds = self._limit_seconds(number, request)
                reply = worker.hear(timeout_seconds=limit_seconds)
                answers.append((number, places, [FunctionOutcome(**each) for each in reply["outcomes"]]))
        except TimeoutError:
            worker.stop()
            return fail("timed_out", f"scoring took more than {limit_seconds:g} s")
        except BrokenPipeError:
            return fail("died", f"the scoring process died ({worker.reap()})")
        except WorkerGone as error:
            return fail("died", f"the scoring process died ({error})")
        except (BadSetting, OSError) as error:
            return fail("died", f"the scoring process does not start again: {error}")
        return answers

    # --- async functions -------------------------------------------------------------------------------

    def _ask_concurrent(self, request: dict[str, Any], call: "_Call") -> "_Answers":
        number, places = call
        # Another call may have brought the process down: each gets a second one.
        for _ in range(2):
            started, limit_seconds = time.monotonic(), self._limit_seconds(number, request)
            try:
                reply = self._concurrent.ask(_about(request, call), timeout_seconds=limit_seconds)
                return [(number, places, [FunctionOutcome(**each) for each in reply["outcomes"]])]
            except TimeoutError:
                outcome = self._failed("timed_out", f"scoring took more than {limit_seconds:g} s and blocked")
                break
            except WorkerGone as error:
                outcome = self._failed("died", f"the scoring process died ({error})")
                if time.monotonic() - started > limit_seconds:
                    outcome = self._failed("timed_out", f"scoring took more than {limit_seconds:g} s")
                    break
            except (BadSetting, OSError) as error:
                outcome = self._failed("died", f"the scoring process does not start again: {error}")
                break
        return [(number, places, [outcome] * len(places))]

    def _failed(self, kind: FailureKind, reason: str) -> FunctionOutcome:
        return _CLOSED if self._is_closed else failed(kind, reason)

    # --- the sum ---------------------------------------------------------------------------------------

    def _sum(self, outcomes: Sequence[FunctionOutcome]) -> Score:
        """The weighted sum of one response, or why it has none."""
        titles = [reward.title for reward in self._rewards]
        functions = (
            {title: each.value for title, each in zip(titles, outcomes, strict=True)}
            if self._has_functions
            else {}
        )
        wrong = next((place for place, each in enumerate(outcomes) if each.kind is not None), None)
        if wrong is not None:
            outcome = outcomes[wrong]
            assert outcome.kind is not None
            reason = f"{titles[wrong]}: {outcome.reason}" if self._has_functions else outcome.reason
            return ScoreFailure(kind=outcome.kind, reason=reason, functions=functions)
        pairs = [(reward.weight, each.value) for reward, each in zip(self._rewards, outcomes, strict=True)]
        applying = [weight * value for weight, value in pairs if value is not None]
        if not applying:
            return ScoreFailure(
                kind="does_not_apply", reason="no reward function applies to it", functions=functions
            )
        extras = {
            f"{title}/{name}"[:MAX_EXTRA_NAME_CHARS]: value
            for title, each in zip(titles, outcomes, strict=True)
            for name, value in each.extras.items()
        }
        return Scored(reward=math.fsum(applying), functions=functions, extras=extras)


def _about(request: dict[str, Any], call: "_Call") -> dict[str, Any]:
    """The request with nothing but what this call is about: a group may begin many."""
    number, places = call
    own = {
        name: [request[name][place] for place in places] for name in ("texts", "token_ids") if request[name]
    }
    return {**request, **own, "calls": [(number, list(range(len(places))))]}


_Call = tuple[int, list[int]]
"""Number of a function, and the places of the responses it is called about."""
_Answers = list[tuple[int, list[int], list[FunctionOutcome]]]
_OWN = RewardConfig(function="exact", name="own")
"""Stands for the task's own scoring, of weight 1."""
_CLOSED = failed("closed", "scoring was closed")
