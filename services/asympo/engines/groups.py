"""What every engine does with the groups it is asked for, whatever draws their responses."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asympo.common.errors import EngineBroken
from asympo.common.records import FinishReason
from asympo.engines.base import EngineStats, Sample, SamplingSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseRequest:
    """One response of a group, as it is asked of an engine."""

    name: str
    """`request_id/index`; unique among the requests in flight."""
    index: int
    """Within its group."""
    prompt_ids: Sequence[int]
    messages: Sequence[Mapping[str, Any]] | None
    """What the ids were rendered from, for engines that render by themselves."""
    sampling: SamplingSettings
    cache_salt: str


_ABORTED = Sample(token_ids=(), text="", finish_reason=FinishReason.ABORT)


class GroupEngine(ABC):
    """Each response is a task of its own, named `request_id/index`; a broken engine ends them all."""

    def __init__(self) -> None:
        self._failure: str | None = None
        self._groups: dict[str, list[asyncio.Task[Sample]]] = {}
        self._num_waiting = 0
        self._num_tokens_generated = 0
        self._num_responses = 0
        self._num_reloads = 0

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            num_tokens_generated=self._num_tokens_generated,
            num_responses=self._num_responses,
            num_in_flight=self._num_waiting,
            num_reloads=self._num_reloads,
        )

    @property
    def context_length(self) -> int | None:
        return None

    @property
    def can_reload(self) -> bool:
        return True

    @property
    def is_broken(self) -> bool:
        return self._failure is not None

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        num_samples: int,
        sampling: SamplingSettings,
        request_id: str,
        cache_salt: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Sample]:
        self._require_usable()
        if request_id in self._groups:
            raise ValueError(f"request {request_id!r} is already in flight")
        tasks = [
            asyncio.create_task(
                self._sample(
                    ResponseRequest(
                        name=f"{request_id}/{index}",
                        index=index,
                        prompt_ids=prompt_ids,
                        messages=messages,
                        sampling=sampling,
                        cache_salt=cache_salt,
                    )
                )
            )
            for index in range(num_samples)
        ]
        self._groups[request_id] = tasks
        self._num_waiting += num_samples
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            self._require_usable()
            for failure in [task.exception() for task in done if not task.cancelled()]:
                if failure is not None:
                    raise failure
            return [_ABORTED if task.cancelled() else task.result() for task in tasks]
        finally:
            self._num_waiting -= num_samples
            del self._groups[request_id]
            for task in tasks:
                task.cancel()

    @abstractmethod
    async def _sample(self, request: ResponseRequest) -> Sample:
        """Draw one response."""

    def _count(self, sample: Sample) -> Sample:
        self._num_tokens_generated += sample.length
        self._num_responses += 1
        return sample

    def _require_usable(self) -> None:
        if self._failure is not None:
            raise EngineBroken(f"the engine is broken: {self._failure}")

    def _broken(self, failure: str) -> EngineBroken:
        """Remember the first failure and end every response in flight, which could only wait for ever."""
        if self._failure is None:
            self._failure = failure
            log.error("Engine broken: %s", failure)
            self._cancel_groups()
        return EngineBroken(f"The engine is broken: {self._failure}.")

    def _cancel_groups(self) -> None:
        current = asyncio.current_task()
        for tasks in self._groups.values():
            for task in tasks:
                if task is not current:
                    task.cancel()
