"""Asking generators: what they refuse in one call is asked in several, and what says nothing is no result."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from asympo.common.errors import PromptRefused
from asympo.engines.base import SamplingSettings
from asympo.evaluator.config import EvalConfig
from asympo.evaluator.measure import measure
from asympo.evaluator.prepare import Prepared
from asympo.evaluator.samplers import FleetSampler
from asympo.generator.rpc import MAX_SAMPLES
from asympo.rewards.progress import RunProgress
from asympo.rewards.scorer import Scored
from asympo.tasks.base import TaskPrompt
from asympo.tasks.config import TaskConfig
from asympo.v1 import generator_service_pb2 as messages
from asympo.v1.generator_service_pb2_grpc import (
    GeneratorServiceServicer,
    add_GeneratorServiceServicer_to_server,
)

SAMPLING = SamplingSettings(temperature=1.0, max_tokens=8)
TOO_LONG = 9
"""First token of a prompt that is refused."""


class Fleet(GeneratorServiceServicer):
    """Answers, once at length, and refuses what a generator refuses."""

    def __init__(self) -> None:
        self.address = ""
        self.num_samples: list[int] = []

    async def Generate(self, request: Any, context: Any) -> messages.GeneratorServiceGenerateResponse:
        if request.num_samples > MAX_SAMPLES or request.prompts[0].token_ids[0] == TOO_LONG:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "give less")
        assert request.sampling.HasField("min_tokens"), "it would sample with the run's own"
        self.num_samples.append(request.num_samples)
        # More than gRPC takes by default.
        texts = ["x" * 2**23 if len(self.num_samples) == 1 else "x", *"y" * (request.num_samples - 1)]
        group = messages.GeneratedGroup(responses=[messages.GeneratedResponse(text=text) for text in texts])
        return messages.GeneratorServiceGenerateResponse(groups=[group], policy_step=3, last_policy_step=4)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Fleet, FleetSampler]]:
    servicer, server = Fleet(), grpc.aio.server()
    add_GeneratorServiceServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    sampler = FleetSampler([servicer.address])
    yield servicer, sampler
    await sampler.close()
    await server.stop(None)


@pytest.mark.asyncio
async def test_many_long_samples_are_asked_in_calls_that_a_generator_takes() -> None:
    async with serving() as (fleet, sampler):
        answered = await sampler.sample([5], num_samples=MAX_SAMPLES + 1, sampling=SAMPLING)
    assert len(answered.texts) == len(answered.token_ids) == sum(fleet.num_samples) == MAX_SAMPLES + 1
    assert {*answered.policy_steps} == {3, 4}


def prepared_for(first_tokens: tuple[int, ...]) -> Prepared:
    """A prompt for each of these, and every answer is right."""
    scorer: Any = SimpleNamespace(score=lambda _, texts, **__: [Scored(reward=1.0) for _ in texts])
    return Prepared(
        config=EvalConfig(show_prompts=0),
        task=TaskConfig(),
        prompts=tuple(TaskPrompt(index=n, row=n, answer="") for n in range(len(first_tokens))),
        sampling=SAMPLING,
        scorer=scorer,
        progress=RunProgress(),
        prompt_ids=tuple((each,) for each in first_tokens),
    )


@pytest.mark.asyncio
async def test_prompt_that_is_refused_counts_as_wrong_and_where_all_are_there_is_no_result() -> None:
    async with serving() as (_, sampler):
        found = (await measure(prepared_for((TOO_LONG, 5)), sampler, max_in_flight=2)).result
        assert (found.mean.value, found.unscored, found.policy_step) == (0.5, 1, 3)
        with pytest.raises(PromptRefused, match=r"held-out .* every one of its 2 prompts; .*: give less"):
            await measure(prepared_for((TOO_LONG, TOO_LONG)), sampler, max_in_flight=2)
