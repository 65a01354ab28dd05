"""Requests that are no messages: refused in a sentence, where gRPC's asyncio server logs a traceback."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from asympo.common.control.roles import replaced


class MessageInterceptor(grpc.aio.ServerInterceptor):
    """Parses in place of the server, inside the call."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        parse = handler.request_deserializer

        async def parsed(request: bytes, context: grpc.aio.ServicerContext) -> Any:
            try:
                return parse(request)
            except (DecodeError, ValueError) as error:
                sentence = f"the request is no message of this method: {error}"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, sentence)

        def given(request: Any, context: grpc.aio.ServicerContext) -> Any:
            if not handler.request_streaming:
                return parsed(request, context)

            async def each() -> AsyncIterator[Any]:
                async for one in request:
                    yield await parsed(one, context)

            async def stream() -> AsyncIterator[Any]:
                return each()

            return stream()

        def guarded(behaviour: Callable[..., Any]) -> Callable[..., Any]:
            async def called(request: Any, context: grpc.aio.ServicerContext) -> Any:
                return await behaviour(await given(request, context), context)

            async def called_stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
                async for response in behaviour(await given(request, context), context):
                    yield response

            return called_stream if inspect.isasyncgenfunction(behaviour) else called

        return replaced(handler, guarded, request_deserializer=None)
