"""One group from lease to log: sample, score, build, append."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from asympo.common.codec import encode_group
from asympo.common.errors import EngineBroken, InvalidRecord, PromptRefused
from asympo.common.records import (
    MAX_FUNCTION_VALUES,
    FinishReason,
    Prompt,
    Response,
    RolloutGroup,
    UnscoredResponse,
)
from asympo.common.rollout_log import AppendResult, Lease
from asympo.engines.base import Engine, Sample, SamplingSettings
from asympo.generator.context import GeneratorContext
from asympo.generator.metrics import GroupOutcome
from asympo.generator.reload.gate import VerdictGate
from asympo.generator.work.inflight import GroupInFlight, GroupStopped, StopReason
from asympo.generator.work.journal import AppendJournal
from asympo.rewards.progress import RunProgress
from asympo.rewards.scorer import Scored, ScoreFailure, Scorer
from asympo.tasks.base import Message, Task, TaskPrompt, columns_json
from asympo.tasks.encoding import encode_response
from asympo.tasks.render import render_prompt

log = logging.getLogger(__name__)

MIN_RESPONSES = 2
"""Fewer scored responses than this have no advantage to speak of."""
MAX_NOTES_CHARS = 800
"""Of what reward functions say of one response in words, their names included."""
ABORT_GRACE_SECONDS = 5.0
"""How long an aborted generation may take to return before it is cancelled."""


class PromptFailed(Exception):
    """This prompt cannot be answered as it is; the message goes to the log with the prompt."""


class EngineFailed(Exception):
    """The engine raised instead of sampling; it may still be fit for other prompts."""


class GroupMaker:
    """Knows how this run samples, scores and records one prompt."""

    def __init__(
        self,
        *,
        context: GeneratorContext,
        sampling: SamplingSettings,
        task: Task,
        scorer: Scorer,
        gate: VerdictGate,
        cache_salt: Callable[[], str],
        journal: AppendJournal | None = None,
    ) -> None:
        self._config = context.config
        self._task = task
        self._engine = context.engine
        self._scorer = scorer
        self._run_log = context.run_log
        self._calls = context.calls
        self._gate = gate
        self._metrics = context.metrics
        self._tracing = context.tracing
        self._holder = context.holder
        self._cache_salt = cache_salt
        self._journal = journal
        self._sampling = sampling

    async def answer(self, group: GroupInFlight) -> GroupOutcome:
        """Bring one leased group into the log. Says how it ended.

        Raises GroupStopped, PromptFailed, EngineFailed for what the lease's holder must settle, EngineBroken
        when the process must end.
        """
        task_prompt = self._task.prompt(group.lease.index)
        prompt_ids = self._render(task_prompt)
        with self._tracing.span(group.lease.group_id, "generate") as span:
            samples = await self._sample(group, prompt_ids, task_prompt.plain_messages)
            span["asympo.tokens"] = sum(sample.length for sample in samples)
        with self._tracing.span(group.lease.group_id, "reward") as span:
            responses, unscored = await self._score(group, task_prompt, samples)
            span["asympo.responses"] = len(responses)
        if len(responses) < MIN_RESPONSES:
            raise PromptFailed(
                f"only {len(responses)} of {group.num_samples} responses could be scored; "
                f"a group needs {MIN_RESPONSES}" + (f": {unscored[0].reason}" if unscored else "")
            )
        text = self._engine.tokenizer.decode(prompt_ids, skip_special_tokens=False)
        payload = self._encode(
            RolloutGroup(
                group_id=group.lease.group_id,
                prompt=Prompt(token_ids=tuple(prompt_ids), text=text),
                responses=tuple(responses),
                unscored=tuple(unscored),
                columns_json=columns_json(task_prompt),
            )
        )
        held_since = time.monotonic()
        if not await group.unless_stopped(self._gate.passes()):
            group.stop(StopReason.UNPROVEN)
            raise GroupStopped(StopReason.UNPROVEN)
        self._metrics.held_seconds.observe(time.monotonic() - held_since)
        with self._tracing.span(group.lease.group_id, "append") as span:
            outcome = await self._append(group, payload)
            span["asympo.outcome"] = outcome
        return outcome

    def _render(self, task_prompt: TaskPrompt) -> list[int]:
        try:
            return render_prompt(task_prompt, self._engine.tokenizer)
        except Exception as error:
            # A template is somebody's own code: what it raises is about this prompt, not about the process.
            raise PromptFailed(f"prompt {task_prompt.index} cannot be rendered: {error!r}") from error

    async def _sample(
        self, group: GroupInFlight, prompt_ids: list[int], messages: Sequence[Message] | None
    ) -> list[Sample]:
        # Weights without a verdict must not fill the prompt cache, nor be sampled from afresh.
        await group.unless_stopped(self._gate.opened())
        started = time.monotonic()
        group.is_sampling = True
        generation = asyncio.ensure_future(
            self._engine.generate(
                prompt_ids,
                num_samples=group.num_samples,
                sampling=self._sampling,
                request_id=group.request_id,
                cache_salt=self._cache_salt(),
                messages=messages,
            )
        )
        samples: list[Sample] = []
        try:
            samples = await group.unless_stopped(asyncio.shield(generation))
        except GroupStopped:
            await self._abort(group, generation)
            raise
        except EngineBroken:
            raise
        except PromptRefused as error:
            raise PromptFailed(f"prompt {group.lease.index}: {error}") from error
        except Exception as error:
            raise EngineFailed(f"sampling prompt {group.lease.index} raised {error!r}") from error
        finally:
            group.is_sampling = False
            group.is_unproven = self._gate.is_shut
            self._count_lost(group, samples)
        self._metrics.generation_seconds.observe(time.monotonic() - started)
        for sample in samples:
            self._metrics.count_response(sample.finish_reason, num_tokens=sample.length)
        return samples

    async def _abort(self, group: GroupInFlight, generation: "asyncio.Future[list[Sample]]") -> None:
        """End a generation inside the engine, so that it takes no more of its time."""
        await self._engine.abort(group.request_id)
        await asyncio.wait({generation}, timeout=ABORT_GRACE_SECONDS)
        if not generation.done():
            generation.cancel()
        elif not generation.cancelled() and (error := generation.exception()) is not None:
            log.warning("An aborted generation ended with %r", error)

    def _count_lost(self, group: GroupInFlight, samples: Sequence[Sample]) -> None:
        if not group.spans_reload or group.stop_reason in (StopReason.LEASE_LOST, StopReason.DRAIN):
            return
        num_whole = sum(sample.finish_reason is not FinishReason.ABORT for sample in samples)
        if num_whole < group.num_samples:
            self._metrics.count_requests_lost(group.num_samples - num_whole)

    async def _score(
        self, group: GroupInFlight, task_prompt: TaskPrompt, samples: Sequence[Sample]
    ) -> tuple[list[Response], list[UnscoredResponse]]:
        """Responses with their rewards, and those without; neither the aborted nor the empty ones."""
        usable = [s for s in samples if (s.token_ids or s.text) and s.finish_reason is not FinishReason.ABORT]
        overlong_reward = self._config.overlong_reward
        is_fixed = [overlong_reward is not None and s.finish_reason is FinishReason.LENGTH for s in usable]
        asked = [sample for sample, fixed in zip(usable, is_fixed, strict=True) if not fixed]
        started = time.monotonic()
        scoring = self._calls.run(
            self._scorer.score,
            task_prompt,
            [sample.text for sample in asked],
            token_ids=[self._ids_to_score(sample) for sample in asked],
            progress=self._progress_at(group.lease),
        )
        scores = iter(await group.unless_stopped(scoring))
        self._metrics.score_seconds.observe(time.monotonic() - started)
        responses: list[Response] = []
        unscored: list[UnscoredResponse] = []
        for sample, fixed in zip(usable, is_fixed, strict=True):
            score = Scored(reward=overlong_reward or 0.0) if fixed else next(scores)
            if isinstance(score, ScoreFailure):
                log.warning(
                    "A response to prompt %d could not be scored: %s", task_prompt.index, score.reason
                )
                self._metrics.count_reward_failures(1)
                unscored.append(UnscoredResponse(text=sample.text, reason=score.reason))
                continue
            responses.append(
                Response(
                    token_ids=sample.token_ids,
                    text=sample.text,
                    reward=score.reward,
                    finish_reason=sample.finish_reason,
                    stop_string=sample.stop_string,
                    function_values=numbers_of(score),
                    function_notes=notes_of(score),
                )
            )
        return responses, unscored

    def _ids_to_score(self, sample: Sample) -> Sequence[int]:
        """For reward functions that ask for ids; of a text they are the tokenizer's."""
        if sample.token_ids or not self._scorer.wants_token_ids:
            return sample.token_ids
        return encode_response(sample.text, self._engine.tokenizer)

    def _progress_at(self, lease: Lease) -> RunProgress:
        config = self._config
        return RunProgress(
            step=lease.policy_step,
            total_steps=config.planned_steps(lease.total_steps),
            epoch=lease.epoch,
            num_epochs=config.num_epochs,
        )

    def _encode(self, record: RolloutGroup) -> bytes:
        try:
            return encode_group(record)
        except InvalidRecord as error:
            raise PromptFailed(f"no valid record can be made of group {record.group_id}: {error}") from error

    async def _append(self, group: GroupInFlight, payload: bytes) -> GroupOutcome:
        """Append, waiting for the broker if need be: it decides whether the lease is still good."""
        result = await group.unless_stopped(
            self._calls.until_answered(self._append_and_note, group.lease, payload)
        )
        group.no_slot = result.no_slot
        outcome: GroupOutcome = result.outcome.value
        if outcome == "too_large":
            raise PromptFailed(
                f"the record has {len(payload)} bytes, more than the run's {self._config.max_record_bytes}"
            )
        if outcome not in ("appended", "duplicate"):
            # A run that has ended takes no more, which happens to whatever is in flight then.
            level = logging.INFO if outcome == "refused" else logging.WARNING
            log.log(level, "Group %s was not taken: %s", group.lease.group_id, outcome)
        return outcome

    def _append_and_note(self, lease: Lease, payload: bytes) -> AppendResult:
        """Both in one call: a group that is stopped while its append runs is in the journal all the same.

        That happens when a renewal comes between the append and its answer, and finds the lease ended.
        """
        result = self._run_log.leases.append(lease, payload, producer=self._holder)
        if self._journal is not None and result.outcome.value in ("appended", "duplicate"):
            try:
                self._journal.record(lease, payload, result, producer=self._holder)
            except OSError as error:
                # The group is in the log and must count as answered, whatever its record's storage does.
                log.error("The append of group %s is not in the journal yet: %s", lease.group_id, error)
                self._metrics.count_unexpected_error()
        return result


def warn_of_cut_responses(engine: Engine, task: Task, sampling: SamplingSettings) -> None:
    """Says so when the engine, perhaps for want of memory, serves less than a prompt and its response."""
    served = engine.context_length
    num_prompt_tokens = len(render_prompt(task.prompt(0), engine.tokenizer))
    if served is not None and num_prompt_tokens + sampling.max_tokens > served:
        log.warning(
            "Longer responses are cut off: prompt 0 has %d tokens and sampling.max_tokens is %d, but the "
            "engine serves %d in a row: if the model can do more, give its cache more memory "
            "(vllm.kv_cache_gib, vllm.gpu_memory_utilization) or raise vllm.max_model_len (with LongRoPE up "
            "to its original range only); else lower sampling.max_tokens",
            *(num_prompt_tokens, sampling.max_tokens, served),
        )


def numbers_of(score: Scored) -> dict[str, float]:
    """Values of the functions that apply, then the numbers that they gave beside."""
    numbers = {name: value for name, value in score.functions.items() if value is not None}
    numbers |= {name: float(value) for name, value in score.extras.items() if isinstance(value, int | float)}
    return dict(list(numbers.items())[:MAX_FUNCTION_VALUES])


def notes_of(score: Scored) -> dict[str, str]:
    """What the functions said in words, as far as a record has room for it."""
    notes, room = {}, MAX_NOTES_CHARS
    for name, value in score.extras.items():
        if isinstance(value, str) and value and room > len(name):
            notes[name] = value[: room - len(name)]
            room -= len(name) + len(notes[name])
    return dict(list(notes.items())[:MAX_FUNCTION_VALUES])
