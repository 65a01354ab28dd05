"""Two ways to get responses: an engine of our own, or the generators' free slots."""

import itertools
from collections.abc import Sequence
from itertools import chain

import grpc

from asympo.common.errors import NoProgress, PromptRefused
from asympo.common.proxies import DIRECT_CHANNEL
from asympo.engines.base import Engine, SamplingSettings
from asympo.evaluator.measure import Answered, together
from asympo.v1 import generator_service_pb2 as messages
from asympo.v1 import rollout_pb2
from asympo.v1.generator_service_pb2_grpc import GeneratorServiceStub

_SAMPLES_A_CALL = 16
"""Few enough for a generator's limit and its message."""
_CALL_SECONDS, _SLOWEST_TOKENS_PER_SECOND = 600.0, 10.0
"""A call waits for free slots, and then for its longest response."""
_ANSWERS_OF_ANY_SIZE = (("grpc.max_receive_message_length", -1),)
_REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)


class EngineSampler:
    """Our own engine, which holds one policy for as long as it is asked."""

    def __init__(self, engine: Engine, *, policy_step: int | None, policy_name: str) -> None:
        self._engine, self._policy_step, self._policy_name = engine, policy_step, policy_name
        self._numbers = itertools.count()

    async def sample(
        self, prompt_ids: Sequence[int], *, num_samples: int, sampling: SamplingSettings
    ) -> Answered:
        samples = await self._engine.generate(
            prompt_ids,
            num_samples=num_samples,
            sampling=sampling,
            request_id=f"eval-{self._policy_name}-{next(self._numbers)}",
            cache_salt=self._policy_name,
        )
        return Answered(
            texts=[sample.text for sample in samples],
            token_ids=[sample.token_ids for sample in samples],
            policy_steps=(self._policy_step, self._policy_step),
        )


class FleetSampler:
    """Generators in turn; which policy they serve is theirs to say."""

    def __init__(self, addresses: Sequence[str]) -> None:
        options = (*DIRECT_CHANNEL, *_ANSWERS_OF_ANY_SIZE)
        self._channels = [grpc.aio.insecure_channel(each, options=options) for each in addresses]
        self._stubs = [GeneratorServiceStub(channel) for channel in self._channels]
        self._turns = itertools.count()

    async def sample(
        self, prompt_ids: Sequence[int], *, num_samples: int, sampling: SamplingSettings
    ) -> Answered:
        """Asks in calls of a few samples each. Raises NoProgress when no generator answers, PromptRefused."""
        starts = range(0, num_samples, _SAMPLES_A_CALL)
        parts = await together(
            self._sample(prompt_ids, min(_SAMPLES_A_CALL, num_samples - start), sampling) for start in starts
        )
        return Answered(
            texts=list(chain.from_iterable(each.texts for each in parts)),
            token_ids=list(chain.from_iterable(each.token_ids for each in parts)),
            policy_steps=tuple(chain.from_iterable(each.policy_steps for each in parts)),
        )

    async def _sample(
        self, prompt_ids: Sequence[int], num_samples: int, sampling: SamplingSettings
    ) -> Answered:
        """Asks the next generator, then the others."""
        request = messages.GeneratorServiceGenerateRequest(
            prompts=[rollout_pb2.Prompt(token_ids=prompt_ids)],
            num_samples=num_samples,
            sampling=messages.Sampling(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                min_tokens=sampling.min_tokens,
                stop=list(sampling.stop),
            ),
        )
        first, problem = next(self._turns), ""
        limit_seconds = _CALL_SECONDS + sampling.max_tokens / _SLOWEST_TOKENS_PER_SECOND
        for number in range(len(self._stubs)):
            stub = self._stubs[(first + number) % len(self._stubs)]
            try:
                answer = await stub.Generate(request, timeout=limit_seconds)
            except grpc.aio.AioRpcError as error:
                if error.code() in _REFUSED:
                    raise PromptRefused(str(error.details())) from None
                problem = f"{error.code().name}: {error.details()}"
                continue
            responses = answer.groups[0].responses
            return Answered(
                texts=[each.text for each in responses],
                token_ids=[tuple(each.token_ids) for each in responses],
                policy_steps=(
                    answer.policy_step if answer.HasField("policy_step") else None,
                    answer.last_policy_step if answer.HasField("last_policy_step") else None,
                ),
            )
        raise NoProgress(f"none of {len(self._stubs)} generators answers ({problem})")

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
