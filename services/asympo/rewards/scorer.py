"""Guarded scoring: processes that can be killed, a time limit for each response."""

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self

from asympo.common.errors import BadSetting
from asympo.rewards.process import WorkerGone, WorkerProcess
from asympo.tasks.config import TaskConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreFailure:
    """One response could not be scored; the others of its group can."""

    kind: Literal["raised", "timed_out", "died", "not_finite", "closed"]
    """A closed set, for metric labels."""
    reason: str
    """One sentence for people."""


class Scorer:
    """Scores responses of one task in `num_workers` processes; thread-safe.

    The constructor waits until the processes are ready, and raises BadSetting when they refuse the task.
    `allow_python` comes from this process's own settings, never from the run: scoring that names Python
    code is then loaded, in the scoring processes only.
    """

    def __init__(
        self, *, task: TaskConfig, timeout_seconds: float, num_workers: int = 1, allow_python: bool = False
    ) -> None:
        if timeout_seconds <= 0 or num_workers < 1:
            raise BadSetting("scoring needs a time limit above 0 and at least one worker")
        self._timeout_seconds = timeout_seconds
        self._is_closed = False
        settings = {"task": task.model_dump(mode="json"), "allow_python": allow_python}
        self._workers = [WorkerProcess(settings) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="scorer")
        try:
            list(self._threads.map(WorkerProcess.start, self._workers))
        except BaseException:
            self.close()
            raise
        for worker in self._workers:
            self._idle.put(worker)

    def score(
        self, prompt_index: int, texts: Sequence[str], *, held_out: bool = False
    ) -> list[float | ScoreFailure]:
        """Rewards of the responses to one prompt, in order; blocks. A response that fails fails alone."""
        requests = [{"index": prompt_index, "held_out": held_out, "text": text} for text in texts]
        try:
            return list(self._threads.map(self._score_one, requests))
        except RuntimeError:
            # The pool takes no work once close() has begun.
            if not self._is_closed:
                raise
            return [_CLOSED] * len(requests)

    def close(self) -> None:
        """Kill the processes; responses being scored fail. Idempotent."""
        self._is_closed = True
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(wait=True)
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _score_one(self, request: dict[str, Any]) -> float | ScoreFailure:
        # As many threads as workers: there is always one.
        worker = self._idle.get()
        try:
            outcome = self._score_with(worker, request)
        finally:
            self._idle.put(worker)
        return _CLOSED if self._is_closed and isinstance(outcome, ScoreFailure) else outcome

    def _score_with(self, worker: WorkerProcess, request: dict[str, Any]) -> float | ScoreFailure:
        try:
            if not worker.is_running:
                worker.start()
            reply = worker.ask(request, timeout_seconds=self._timeout_seconds)
        except TimeoutError:
            worker.stop()
            return ScoreFailure(
                kind="timed_out", reason=f"scoring took more than {self._timeout_seconds:g} s"
            )
        except WorkerGone as error:
            return ScoreFailure(kind="died", reason=f"the scoring process died ({error})")
        except (BadSetting, OSError) as error:
            return ScoreFailure(kind="died", reason=f"the scoring process does not start again: {error}")
        if "reward" in reply:
            return float(reply["reward"])
        if "raised" in reply:
            return ScoreFailure(kind="raised", reason=f"scoring raised {reply['raised']}")
        return ScoreFailure(kind="not_finite", reason=reply["not_finite"])


_CLOSED = ScoreFailure(kind="closed", reason="scoring was closed")
