"""The loop: wait for policies, measure those that are due."""

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.checkpoints.names import StepName
from asympo.common.errors import (
    AsympoError,
    BrokerFull,
    BrokerRefused,
    EngineBroken,
    PromptRefused,
    RunConfigMismatch,
)
from asympo.common.jsonl import JsonlWriter
from asympo.common.rollout_log import PolicyAnnouncement, RunLog, RunState
from asympo.common.rollout_log.broker.calls import Calls
from asympo.common.rollout_log.evals.result import EvalResult
from asympo.common.rollout_log.evals.sample import EvalSample
from asympo.common.rollout_log.presence import EVALUATOR
from asympo.evaluator.episodes import measure_episodes, player_of
from asympo.evaluator.measure import Measured, Sampler, measure
from asympo.evaluator.metrics import EvaluatorMetrics
from asympo.evaluator.prepare import Chosen, Prepared, render
from asympo.evaluator.retries import Retries
from asympo.evaluator.settings import EvaluatorSettings
from asympo.evaluator.sources import Source

log = logging.getLogger(__name__)

_HOLD_SECONDS = 20.0
_LAST_TRIES = 3
"""For the last policy of a run that has ended: no other comes."""
_UNREAD_SECONDS = 180.0
"""How long the store may fail in a row once a run has ended."""


@dataclass(kw_only=True)
class EvaluatorStatus:
    """What an evaluator is doing, for people."""

    state: str = "starting"
    """starting, waiting or measuring."""
    measuring: str = ""
    """Which evaluation, and how far it is."""
    newest: dict[str, EvalResult] = field(default_factory=dict)
    """The newest result of each evaluation."""

    def status(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "measuring": self.measuring,
            "evals": [each.to_dict() for each in self.newest.values()],
        }


class EvaluationLoop:
    """Follows the policies of one run."""

    def __init__(
        self,
        *,
        settings: EvaluatorSettings,
        run_log: RunLog,
        run_id: str,
        store: PolicyStore,
        source: Source,
        chosen: Sequence[Chosen],
        progress: EvaluatorStatus,
        metrics: EvaluatorMetrics,
        calls: Calls,
        writer: JsonlWriter | None,
    ) -> None:
        self._settings, self._run_log, self._run_id, self._store = settings, run_log, run_id, store
        self._source, self._chosen, self._writer = source, chosen, writer
        self._progress, self._metrics, self._calls = progress, metrics, calls
        self._prepared: dict[str, Prepared] = {}
        self._retries = Retries()
        self._failing: set[str] = set()
        """Evaluations that failed last, and may not the next time."""
        self._is_refused = False
        """Whether the broker turned the newest report away."""
        self._is_unread = False
        """Whether the policies could not be listed."""
        self._holder = f"evaluator-{socket.gethostname()}-{os.getpid()}"

    async def run(self) -> None:
        """Measures what is due, for ever or until the run has ended.

        Raises EngineBroken, RunConfigMismatch once there is another run of that name.
        """
        for result in (await self._calls.until_answered(self._run_log.evaluations.after))[0]:
            self._progress.newest[result.eval] = result
        self._progress.state = "waiting"
        num_tries, gives_up_at = 0, math.inf
        while True:
            await self._refuse_another_run()
            announced = await self._calls.until_answered(self._run_log.policies.latest)
            is_over = await self._is_over()
            policy = await self._newest_policy()
            is_lost = is_over and self._is_unread
            gives_up_at = min(gives_up_at, time.monotonic() + _UNREAD_SECONDS) if is_lost else math.inf
            due = [] if policy is None else await self._due(policy, is_over=is_over)
            num_tries = num_tries + bool(due) if is_over else 0
            if policy is not None and due and await self._measure_due(policy, due):
                continue
            is_last = is_over and self._settings.exit_when_run_ends
            if is_last and self._is_unread:
                if time.monotonic() >= gives_up_at:
                    log.error(
                        "The policies could not be read for %g s: the last one may not be measured",
                        _UNREAD_SECONDS,
                    )
                    return
            elif is_last and not await self._is_tried_again(policy, num_tries):
                return
            self._progress.state = "waiting"
            await self._wait_for_news(announced, is_over=is_over)

    async def _refuse_another_run(self) -> None:
        run_id = await self._calls.until_answered(self._run_log.state.run_id)
        if self._run_id and run_id and run_id != self._run_id:
            raise RunConfigMismatch(
                f"run {self._run_log.run!r} was deleted and created anew since this evaluator joined it: "
                "start it again"
            )
        self._run_id = self._run_id or run_id

    async def _is_tried_again(self, policy: PolicyRef | None, num_tries: int) -> bool:
        """Whether the last policy of a run that has ended failed, and may not the next time."""
        if policy is None or num_tries >= _LAST_TRIES:
            return False
        return bool(self._failing & {*await self._due(policy, is_over=True, even_early=True)})

    async def _is_over(self) -> bool:
        return await self._calls.until_answered(self._run_log.state.get) is RunState.FINISHED

    async def _wait_for_news(self, announced: PolicyAnnouncement | None, *, is_over: bool) -> None:
        """Until a policy is announced, the run ends or goes on, or it is time to list the store again."""
        until = time.monotonic() + self._settings.policy_poll_seconds
        while (left := until - time.monotonic()) > 0:
            wait_seconds = min(left, self._settings.slot_wait_seconds)
            newer = await self._calls.until_answered(self._run_log.policies.wait, announced, wait_seconds)
            if newer is not None or await self._is_over() is not is_over:
                return

    async def _measure_due(self, policy: PolicyRef, due: Sequence[str]) -> bool:
        """False when the policy cannot be measured now, or no answer told its policy: to be tried later."""
        await self._report_held(policy)
        holding = asyncio.ensure_future(self._hold(policy))
        try:
            sampler = await self._source.open(policy)
            told = [
                await self._is_told(each, sampler, policy) for each in self._chosen if each.config.name in due
            ]
        except EngineBroken:
            raise
        except AsympoError as error:
            for name in due:
                self._metrics.failed(name)
                self._failing.add(name)
            log.warning("Policy %d is not measured: %s", policy.step, error)
            return False
        finally:
            holding.cancel()
        return any(told)

    async def _is_told(self, chosen: Chosen, sampler: Sampler, policy: PolicyRef) -> bool:
        """Measures; whether the answers told their policy. What fails holds up no other evaluation."""
        name = chosen.config.name
        try:
            if name not in self._prepared:
                self._prepared[name] = await self._calls.run(render, chosen, self._source.tokenizer)
            measured = await self._measure(self._prepared[name], sampler, policy)
            await self._keep(measured)
        except EngineBroken:
            raise
        except AsympoError as error:
            self._metrics.failed(name)
            if not isinstance(error, PromptRefused):
                self._failing.add(name)
            seconds = self._retries.failed(name, policy.name)
            log.warning(
                "%s of policy %d is not measured, and tried again with the next policy or after %.0f s: %s",
                *(name, policy.step, seconds, error),
            )
            return False
        self._failing.discard(name)
        return measured.result.policy_step is not None

    async def _hold(self, policy: PolicyRef) -> None:
        """Keeps the learner from deleting it, until a while after it is measured: it may be the best."""
        while True:
            await asyncio.sleep(_HOLD_SECONDS / 4)
            await self._report_held(policy)

    async def _report_held(self, policy: PolicyRef) -> None:
        # One holder for each policy: the one before is held on until its result has been read.
        holder = f"{self._holder}-{policy.name}"
        report = {"service": EVALUATOR, "policy_step": policy.step, "policy_fence": policy.fence}
        try:
            await self._calls.until_answered(
                self._run_log.presence.report, holder, report, ttl_seconds=_HOLD_SECONDS
            )
        except BrokerRefused as error:
            # A policy that is deleted meanwhile is not measured, and the next one is.
            if not self._is_refused:
                log.warning(
                    "The broker takes no report, so the learner may delete what is measured: %s", error
                )
            self._is_refused = True
        else:
            self._is_refused = False

    async def _measure(self, each: Prepared, sampler: Sampler, policy: PolicyRef) -> Measured:
        self._progress.state, total = "measuring", len(each.prompts)
        is_own = self._settings.engine != "generators"

        def note(done: int) -> None:
            self._progress.measuring = f"{each.config.name}: {done} of {total} prompts"

        try:
            if each.task.is_environment:
                return await self._play(each, policy, note)
            return await measure(
                each,
                sampler,
                max_in_flight=self._settings.max_prompts_in_flight,
                policy_fence=policy.fence if is_own else None,
                note=note,
            )
        finally:
            self._progress.measuring = ""

    async def _play(self, each: Prepared, policy: PolicyRef, note: Callable[[int], None]) -> Measured:
        settings = self._settings
        door, sampler = await self._source.door(policy)
        return await measure_episodes(
            each,
            player_of(settings, each.task),
            door=door,
            sampler=sampler,
            max_in_flight=settings.max_prompts_in_flight,
            policy_fence=policy.fence if settings.engine != "generators" else None,
            note=note,
        )

    async def _keep(self, measured: Measured) -> None:
        result = measured.result
        self._progress.newest[result.eval] = result
        self._metrics.measured(result)
        log.info("%s of policy %s: mean@%d %s", result.eval, result.policy_step, result.samples, result.mean)
        if self._writer is not None:
            await self._calls.run(self._writer.append, result.to_dict())
        for sample in measured.samples:
            if not await self._calls.until_answered(self._has_room_for, sample):
                break
        await self._calls.until_answered(self._run_log.evaluations.add, result)

    def _has_room_for(self, sample: EvalSample) -> bool:
        """Whether the broker took it; a full one is not waited for, as the result is what counts."""
        try:
            self._run_log.evaluations.add_sample(sample)
        except BrokerFull as error:
            log.warning("Answers of %s are not kept: %s", sample.eval, error)
            return False
        return True

    async def _newest_policy(self) -> PolicyRef | None:
        bad = await self._calls.until_answered(self._run_log.policies.bad)
        names = {str(StepName(step=each.step, fence=each.fence)) for each in bad}
        try:
            policy = await self._calls.run(self._store.newest, exclude=names)
        except OSError as error:
            log.error(
                "The policies in %s cannot be read, which is tried again in %g s: %s",
                *(self._store.path, self._settings.policy_poll_seconds, error),
            )
            policy, self._is_unread = None, True
        else:
            self._is_unread = False
        return policy

    async def _due(self, policy: PolicyRef, *, is_over: bool, even_early: bool = False) -> list[str]:
        """Names of the evaluations that this policy should go through, now or `even_early`."""
        due = []
        for each in self._chosen:
            if not even_early and self._retries.is_too_early(each.config.name, policy.name):
                continue
            before = self._progress.newest.get(each.config.name)
            step = before.policy_step if before is not None else None
            num_since = await self._calls.until_answered(self._run_log.policies.num_after, step or 0)
            if is_due(policy, before, num_since=num_since, every=each.config.every, is_over=is_over):
                due.append(each.config.name)
        return due


def is_due(
    policy: PolicyRef, before: EvalResult | None, *, num_since: int, every: int, is_over: bool
) -> bool:
    """Whether to measure `policy` if `before` was measured last and `num_since` were announced since."""
    if before is None or before.policy_step is None:
        return True
    if before.policy_fence is not None and policy.fence > before.policy_fence:
        # A learner took over; one that went back publishes steps again that were measured.
        return is_over or num_since >= every or policy.step <= before.policy_step
    if is_over:
        return policy.step > (before.last_policy_step or 0)
    return policy.step > before.policy_step and num_since >= every
