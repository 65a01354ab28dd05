"""The object behind HTTP and gRPC: what the generator is doing, and the commands it takes."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import psutil

from asympo.common.checkpoints import PolicyRef
from asympo.common.errors import AsympoError
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import RefusalReason
from asympo.engines.base import Engine, Sample, SamplingSettings
from asympo.generator.metrics import GeneratorMetrics
from asympo.generator.outside import OutsideRequests
from asympo.generator.reload.gate import VerdictGate
from asympo.generator.reload.reloader import Reloader
from asympo.generator.work.inflight import GroupsInFlight
from asympo.generator.work.worker import Worker

log = logging.getLogger(__name__)

RATE_WINDOW_SECONDS = 10.0
"""Tokens per second are a mean over this long."""


class GeneratorState(StrEnum):
    """What a generator is doing, in one word."""

    STARTING = "starting"
    WAITING_FOR_POLICY = "waiting_for_policy"
    GENERATING = "generating"
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPED = "stopped"


class NotReady(AsympoError):
    """The engine does not serve yet, or not any more; ask again later or ask another generator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingParts:
    """What exists once the engine serves."""

    engine: Engine
    reloader: Reloader
    worker: Worker
    groups: GroupsInFlight
    gate: VerdictGate
    sampling: SamplingSettings
    """The run's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """Answer to a request outside the log."""

    samples: list[list[Sample]]
    """One list for each prompt."""
    first_policy: PolicyRef | None
    """Served when sampling began; None for the bare model."""
    last_policy: PolicyRef | None
    """Served when sampling ended."""


class TokenRate:
    """Tokens per second over the last while."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque()

    def note(self, num_tokens: int) -> None:
        """One more reading of the engine's counter."""
        now = time.monotonic()
        self._readings.append((now, num_tokens))
        while len(self._readings) > 2 and now - self._readings[1][0] >= RATE_WINDOW_SECONDS:
            self._readings.popleft()

    @property
    def tokens_per_second(self) -> float:
        if len(self._readings) < 2:
            return 0.0
        (start, first), (end, last) = self._readings[0], self._readings[-1]
        return (last - first) / (end - start) if end > start else 0.0


class Generator:
    """Exists before its engine does, so that it can be asked how the start is going."""

    def __init__(
        self,
        *,
        run: str,
        holder: str,
        metrics: GeneratorMetrics,
        stop: StopSignal,
        drain_seconds: float,
        warnings: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        self._warnings = warnings
        self.run = run
        self.holder = holder
        self._metrics = metrics
        self._stop = stop
        self._drain_seconds = drain_seconds
        self._is_paused_early = False
        self._is_over = False
        self.parts: ServingParts | None = None
        self.rate = TokenRate()
        self.outside = OutsideRequests()
        self.is_broker_answering = False
        """Whether the newest presence report had an answer."""
        self.loading: PolicyRef | None = None
        """The policy being loaded: the report keeps the learner from deleting it meanwhile."""

    def attach(self, parts: ServingParts) -> None:
        """The engine serves: from now on there is something to control."""
        self.parts = parts
        if self._is_paused_early:
            parts.worker.pause()

    def end(self) -> None:
        """The process is about to end."""
        self._is_over = True

    @property
    def state(self) -> GeneratorState:
        parts = self.parts
        if self._is_over:
            return GeneratorState.STOPPED
        if self._stop.is_set or (parts and parts.worker.is_draining):
            return GeneratorState.DRAINING
        if parts is None:
            return GeneratorState.STARTING
        if parts.reloader.served_step is None:
            return GeneratorState.WAITING_FOR_POLICY
        if parts.worker.refusal is RefusalReason.RUN_ENDED:
            return GeneratorState.STOPPED
        return GeneratorState.PAUSED if parts.worker.is_paused else GeneratorState.GENERATING

    @property
    def not_ready_reason(self) -> str | None:
        """Why it cannot do useful work; None when it can. A pause does not count: it was asked for."""
        parts = self.parts
        if self._stop.is_set or self._is_over:
            return "stopping"
        if parts is None:
            return "the engine is not loaded yet"
        if parts.engine.is_broken:
            return "the engine is broken"
        if parts.reloader.served_step is None:
            return "no policy has been published yet"
        return None if self.is_broker_answering else "the broker does not answer"

    def pause(self) -> None:
        """Stop leasing; also before the engine is ready. Idempotent."""
        self._is_paused_early = True
        if self.parts:
            self.parts.worker.pause()

    def resume(self) -> None:
        """Lease again. Raises NotReady while draining. Idempotent."""
        if self.state is GeneratorState.DRAINING:
            raise NotReady("the generator is draining and will end: a drain cannot be undone")
        self._is_paused_early = False
        if self.parts:
            self.parts.worker.resume()

    async def drain(self, *, deadline_seconds: float | None = None) -> tuple[int, int]:
        """Finish or hand back what is in flight, then let the process end; (groups appended, handed back).

        Requests outside the log are answered within the same time, and no more are taken.
        """
        limit_seconds = self._drain_seconds if deadline_seconds is None else deadline_seconds
        counts = (0, 0)
        if self.parts:
            if self.outside:
                log.info("Draining %d requests outside the log", len(self.outside))
            counts, _ = await asyncio.gather(
                self.parts.worker.drain(deadline_seconds=limit_seconds),
                self.outside.drain(deadline_seconds=limit_seconds),
            )
            if self.outside:
                log.warning("%d requests outside the log are cut off", len(self.outside))
        self._stop.set("drained on request")
        return counts

    async def generate(
        self, prompts: Sequence[Sequence[int]], *, num_samples: int, changes: dict[str, Any], request_id: str
    ) -> Generated:
        """Sample outside the log; `changes` override the run's sampling settings.

        Waits while a reload has no verdict, before and after. Raises NotReady, PromptRefused, ValueError.
        """
        parts = self.parts
        if parts is None or parts.engine.is_broken or self._is_over:
            raise NotReady(self.not_ready_reason or "the generator is ending")
        if self.outside.is_closed:
            raise NotReady("the generator is draining: ask another one")
        with self.outside.one():
            return await self._generate(
                parts, prompts, num_samples=num_samples, changes=changes, request_id=request_id
            )

    async def _generate(
        self,
        parts: ServingParts,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        changes: dict[str, Any],
        request_id: str,
    ) -> Generated:
        opened = await parts.gate.opened()
        sampling = _changed(parts.sampling, changes)
        first_policy = parts.reloader.policy
        tasks = [
            asyncio.ensure_future(
                parts.engine.generate(
                    prompt,
                    num_samples=num_samples,
                    sampling=sampling,
                    request_id=f"{request_id}.{index}",
                    cache_salt=parts.reloader.cache_salt,
                )
            )
            for index, prompt in enumerate(prompts)
        ]
        try:
            samples = await asyncio.gather(*tasks)
        except BaseException:
            # The caller went away or one prompt was refused: the others must not go on for nobody.
            for index, task in enumerate(tasks):
                if not task.done():
                    task.cancel()
                    await parts.engine.abort(f"{request_id}.{index}")
            raise
        # Weights are sampled from before they are proven, and only then is their policy the one served.
        if not await parts.gate.passes(opened):
            raise NotReady("a policy behind these answers failed its proof: ask again")
        return Generated(samples=list(samples), first_policy=first_policy, last_policy=parts.reloader.policy)

    def status(self) -> dict[str, Any]:
        """What `/v1/status` shows and the presence report carries."""
        parts, tally = self.parts, self._metrics.tally
        policy = parts.reloader.policy if parts else None
        refusal = parts.worker.refusal if parts else None
        stats = parts.engine.stats if parts else None
        counters = {name: value for name, value in asdict(tally).items() if name != "responses"}
        return {
            "holder": self.holder,
            "run": self.run,
            "state": self.state.value,
            "not_ready_reason": self.not_ready_reason,
            "policy_step": parts.reloader.served_step if parts else None,
            "can_reload": parts.engine.can_reload if parts else None,
            "policy_fence": policy.fence if policy else None,
            "loading_step": self.loading.step if self.loading else None,
            "loading_fence": self.loading.fence if self.loading else None,
            "waiting_for": refusal.value if refusal else None,
            "tokens_per_second": round(self.rate.tokens_per_second, 1),
            "groups_in_flight": len(parts.groups) if parts else 0,
            "groups_held": parts.gate.num_held if parts else 0,
            "responses_total": tally.responses,
            "tokens_total": stats.num_tokens_generated if stats else 0,
            "last_reload": self._last_reload(),
            **counters,
            "rss_bytes": tree_rss_bytes(),
            "warnings": self._warnings(),
        }

    def _last_reload(self) -> dict[str, Any] | None:
        report = self.parts.reloader.last_reload if self.parts else None
        if report is None:
            return None
        return {
            "step": report.policy.step,
            "verdict": report.verdict.value,
            "seconds": round(report.timing.pause_seconds, 4),
            "load_seconds": round(report.timing.reload_seconds, 4),
            "at_seconds": report.at_seconds,
            "in_flight": report.timing.num_in_flight,
        }


def _changed(of_run: SamplingSettings, changes: dict[str, Any]) -> SamplingSettings:
    """The run's sampling settings with changes; its own min_tokens gives way to a smaller max_tokens."""
    sampling = replace(of_run, **changes)
    if sampling.min_tokens <= sampling.max_tokens:
        return sampling
    if "min_tokens" in changes:
        raise ValueError(
            f"min_tokens is {sampling.min_tokens}: give at most max_tokens, {sampling.max_tokens}"
        )
    return replace(sampling, min_tokens=sampling.max_tokens)


def tree_rss_bytes() -> int:
    """Resident memory of this process and everything it started, the engine's processes included."""
    own = psutil.Process()
    total = own.memory_info().rss
    for child in own.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return int(total)
