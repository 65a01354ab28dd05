"""The OpenAI-compatible door: vLLM's own handlers over the engine that samples for the log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response

from asympo.engines.base import DoorTerms

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

DOOR_PRIORITY = 0
"""That of responses for the log: nobody may push them aside, and they push nobody aside."""
LEFT = 499
"""Status of a request that nobody waits for any more; only logs see it."""
OURS = ("cache_salt", "priority", "request_id", "kv_transfer_params", "vllm_xargs")
"""Fields of a request that the door sets itself or lets nobody set."""


class GuardedEngine:
    """The engine as vLLM's handlers see it: every request takes our slots, salt and priority."""

    def __init__(
        self,
        *,
        engine: AsyncLLM,
        slots: asyncio.Semaphore,
        max_slots: int,
        in_engine: set[str],
        terms: DoorTerms,
    ) -> None:
        self._engine = engine
        self._slots = slots
        self._max_slots = max_slots
        self._in_engine = in_engine
        self._terms = terms
        self._several = asyncio.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """One request of a handler; the last output waits for the verdict on the weights behind it."""
        from vllm.exceptions import RetryableRequestError

        if sampling_params.prompt_logprobs is not None:
            raise ValueError("log-probabilities of the prompt are not served here: leave them out")
        num_slots = sampling_params.n
        if num_slots > self._max_slots:
            raise ValueError(f"n is {num_slots}: give at most {self._max_slots}")
        sampling_params.extra_args = None
        options["priority"] = DOOR_PRIORITY
        async with self._taken(num_slots):
            opened = await self._terms.opened()
            prompt = {**prompt, "cache_salt": self._terms.cache_salt()}
            self._in_engine.add(request_id)
            try:
                async for output in self._engine.generate(prompt, sampling_params, request_id, **options):
                    if output.finished and not await self._terms.passes(opened):
                        raise RetryableRequestError(
                            "the policy behind this answer failed its proof: ask again"
                        )
                    yield output
            finally:
                self._in_engine.discard(request_id)

    @contextlib.asynccontextmanager
    async def _taken(self, num_slots: int) -> AsyncIterator[None]:
        held = 0
        try:
            # Two that each hold a part of what they need would wait for each other.
            async with self._several:
                while held < num_slots:
                    await self._slots.acquire()
                    held += 1
            yield
        finally:
            for _ in range(held):
                self._slots.release()


async def build_door(engine: GuardedEngine, terms: DoorTerms, *, model_path: str) -> FastAPI:
    """The application: chat completions, completions, responses, models, and no other route."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.api_router import create_completion
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.models.api_router import show_available_models
    from vllm.entrypoints.openai.responses.api_router import create_responses
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    flags = ["--model", model_path, "--served-model-name", terms.model_name, "--disable-log-stats"]
    if terms.tool_call_parser:
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", terms.tool_call_parser]
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.args = arguments
    await init_app_state(engine, app.state, arguments, ("generate",))  # type: ignore[arg-type]
    init_exception_handler(app)

    def serve(path: str, request_class: Any, handler: Any) -> None:
        async def answer(raw_request: Request) -> Any:
            await terms.opened()
            step = terms.policy_step()
            request = request_class(**_asked(await raw_request.json(), request_class))
            response = await handler(request, raw_request=raw_request)
            return _answered(response, step)

        app.add_api_route(path, answer, methods=["POST"], response_model=None)

    serve("/v1/chat/completions", ChatCompletionRequest, create_chat_completion)
    serve("/v1/completions", CompletionRequest, create_completion)
    serve("/v1/responses", ResponsesRequest, create_responses)
    app.add_api_route("/v1/models", show_available_models, methods=["GET"], response_model=None)
    return app


def _answered(response: Response | None, step: int | None) -> Response:
    """The handler's answer with the policy's step; vLLM has none for a caller that has left."""
    if response is None:
        return Response(status_code=LEFT)
    response.headers["x-asympo-policy-step"] = "" if step is None else str(step)
    return response


def _asked(body: Any, request_class: Any) -> dict[str, Any]:
    """The fields of a request without those that are the door's."""
    if not isinstance(body, dict):
        raise ValueError("the body is not a JSON object")
    fields = {name: value for name, value in body.items() if name not in OURS}
    if "return_token_ids" in request_class.model_fields:
        fields["return_token_ids"] = True
    return fields
