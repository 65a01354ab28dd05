"""gRPC of a generator: control and evaluation, health, reflection when debugging."""

import asyncio
import logging
import uuid
from typing import Any

import grpc

from asympo.common.codec import FINISH_REASON_TO_WIRE
from asympo.common.control.server import ControlServer
from asympo.common.control.settings import ControlSettings
from asympo.common.errors import EngineBroken, PromptRefused
from asympo.common.foreign.text import printable
from asympo.engines.base import Sample
from asympo.generator.core import Generator, GeneratorState, NotReady
from asympo.generator.reload.verdict import Verdict
from asympo.v1 import generator_service_pb2 as messages
from asympo.v1.generator_service_pb2_grpc import (
    GeneratorServiceServicer,
    add_GeneratorServiceServicer_to_server,
)

log = logging.getLogger(__name__)

SERVICE_NAME = "asympo.v1.GeneratorService"
VIEWING = (f"/{SERVICE_NAME}/Status",)
"""Calls that change nothing: a viewer may make them."""
MAX_PROMPTS = 1024
MAX_SAMPLES = 256
MAX_PROMPT_CHARS = 2**18
MAX_MESSAGE_BYTES = 64 * 2**20

_STATES = {state: f"GENERATOR_STATE_{state.name}" for state in GeneratorState}
_VERDICTS = {verdict: f"RELOAD_VERDICT_{verdict.name}" for verdict in Verdict}


class GeneratorRpc(GeneratorServiceServicer):
    """Translates between messages and the one core object."""

    def __init__(self, *, generator: Generator) -> None:
        self._generator = generator

    async def Status(
        self, request: messages.GeneratorServiceStatusRequest, context: grpc.aio.ServicerContext
    ) -> messages.GeneratorServiceStatusResponse:
        status = self._generator.status()
        return messages.GeneratorServiceStatusResponse(
            state=_STATES[self._generator.state],
            run=status["run"],
            holder=status["holder"],
            policy_step=status["policy_step"],
            policy_fence=status["policy_fence"],
            num_groups_in_flight=status["groups_in_flight"],
            num_groups_held=status["groups_held"],
            num_groups_appended=status["groups_appended"],
            num_responses=status["responses_total"],
            num_tokens=status["tokens_total"],
            tokens_per_second=status["tokens_per_second"],
            num_reloads=status["reloads"],
            last_reload=self._last_reload(),
        )

    async def Pause(
        self, request: messages.GeneratorServicePauseRequest, context: grpc.aio.ServicerContext
    ) -> messages.GeneratorServicePauseResponse:
        log.info("Paused on request: %s", printable(request.reason) or "no reason given")
        self._generator.pause()
        return messages.GeneratorServicePauseResponse(state=_STATES[self._generator.state])

    async def Resume(
        self, request: messages.GeneratorServiceResumeRequest, context: grpc.aio.ServicerContext
    ) -> messages.GeneratorServiceResumeResponse:
        try:
            self._generator.resume()
        except NotReady as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        log.info("Resumed on request")
        return messages.GeneratorServiceResumeResponse(state=_STATES[self._generator.state])

    async def Drain(
        self, request: messages.GeneratorServiceDrainRequest, context: grpc.aio.ServicerContext
    ) -> messages.GeneratorServiceDrainResponse:
        deadline = request.deadline_seconds if request.HasField("deadline_seconds") else None
        num_appended, num_handed_back = await self._generator.drain(deadline_seconds=deadline)
        return messages.GeneratorServiceDrainResponse(
            num_groups_appended=num_appended, num_groups_handed_back=num_handed_back
        )

    async def Generate(
        self, request: messages.GeneratorServiceGenerateRequest, context: grpc.aio.ServicerContext
    ) -> messages.GeneratorServiceGenerateResponse:
        try:
            prompts = await self._prompt_ids(request)
            num_samples = request.num_samples or 1
            if num_samples > MAX_SAMPLES:
                raise ValueError(f"num_samples is {num_samples}: give at most {MAX_SAMPLES}")
            generated = await self._generator.generate(
                prompts,
                num_samples=num_samples,
                changes=_sampling_changes(request.sampling),
                request_id=f"rpc-{uuid.uuid4().hex[:12]}",
            )
        except (ValueError, PromptRefused) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except (NotReady, EngineBroken) as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        first, last = generated.first_policy, generated.last_policy
        return messages.GeneratorServiceGenerateResponse(
            groups=[
                messages.GeneratedGroup(responses=[_response(sample) for sample in samples])
                for samples in generated.samples
            ],
            policy_step=first.step if first else None,
            last_policy_step=last.step if last else None,
        )

    async def _prompt_ids(self, request: messages.GeneratorServiceGenerateRequest) -> list[list[int]]:
        if not 1 <= len(request.prompts) <= MAX_PROMPTS:
            raise ValueError(f"there are {len(request.prompts)} prompts: give 1 to {MAX_PROMPTS}")
        if self._generator.parts is None:
            raise NotReady("the engine is not loaded yet")
        tokenizer = self._generator.parts.engine.tokenizer
        prompts = []
        for p in request.prompts:
            if len(p.text) > MAX_PROMPT_CHARS:
                raise ValueError(
                    f"a prompt has {len(p.text)} characters: give at most {MAX_PROMPT_CHARS}, or token ids"
                )
            prompts.append(list(p.token_ids) or list(tokenizer.encode(p.text)))
            # Sampling goes on between two of them: each holds up the event loop for as long as it takes.
            await asyncio.sleep(0)
        if not all(prompts):
            raise ValueError("a prompt is empty: give token ids or text")
        return prompts

    def _last_reload(self) -> messages.Reload | None:
        report = self._generator.parts.reloader.last_reload if self._generator.parts else None
        if report is None:
            return None
        return messages.Reload(
            policy_step=report.policy.step,
            verdict=_VERDICTS[report.verdict],
            pause_seconds=report.timing.pause_seconds,
            reload_seconds=report.timing.reload_seconds,
            num_requests_in_flight=report.timing.num_in_flight,
            finished_at_seconds=report.at_seconds,
        )


def _sampling_changes(sampling: messages.Sampling) -> dict[str, Any]:
    """The fields that were given; a value no engine takes is a ValueError."""
    changes: dict[str, Any] = {
        name: getattr(sampling, name)
        for name in ("temperature", "top_p", "max_tokens", "min_tokens", "seed")
        if sampling.HasField(name)
    }
    if sampling.stop:
        changes["stop"] = tuple(sampling.stop)
    if not 0.0 <= changes.get("temperature", 0.0) <= 100.0:
        raise ValueError(f"temperature is {changes['temperature']}: give 0 (greedy) to 100")
    if not 0.0 < changes.get("top_p", 1.0) <= 1.0:
        raise ValueError(f"top_p is {changes['top_p']}: give more than 0 and at most 1")
    if changes.get("max_tokens", 1) < 1:
        raise ValueError("max_tokens is 0: give 1 or more")
    return changes


def _response(sample: Sample) -> messages.GeneratedResponse:
    return messages.GeneratedResponse(
        token_ids=sample.token_ids,
        text=sample.text,
        finish_reason=FINISH_REASON_TO_WIRE[sample.finish_reason],
    )


def control_server(generator: Generator, *, settings: ControlSettings) -> ControlServer:
    """The generator's gRPC server, not yet started."""
    return ControlServer(
        name=SERVICE_NAME,
        add=lambda server: add_GeneratorServiceServicer_to_server(GeneratorRpc(generator=generator), server),
        viewing=VIEWING,
        settings=settings,
        max_message_bytes=MAX_MESSAGE_BYTES,
    )
