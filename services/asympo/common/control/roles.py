"""Who may call what: the role in a caller's certificate, and the refusal if it is not enough."""

import enum
import inspect
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

import grpc

log = logging.getLogger(__name__)

_VIEWING_EVERYWHERE = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")

# One attribute of a name in the text form of RFC 2253, where commas and pluses of a value are escaped.
_ATTRIBUTE = re.compile(r"(?:\\.|[^\\,+])+", re.DOTALL)


class Role(enum.IntEnum):
    """What a caller may do; a higher one may do what a lower one may."""

    VIEWER = 1
    """Calls that change nothing."""
    OPERATOR = 2
    """Every call."""

    @property
    def unit(self) -> str:
        """The organizational unit (OU) that gives it."""
        return f"asympo:{self.name.lower()}"


AuthContext = Mapping[str, Iterable[bytes]]


def role_of(auth_context: AuthContext) -> Role | None:
    """The highest role among the OUs of the certificate's subject; None without any."""
    subject = b"".join(auth_context.get("x509_subject", ())).decode("utf-8", "replace")
    attributes = _ATTRIBUTE.findall(subject)
    return max((role for role in Role if f"OU={role.unit}" in attributes), default=None)


def name_of(auth_context: AuthContext) -> str:
    """The common name of the certificate's subject, for logs and refusals."""
    return b"".join(auth_context.get("x509_common_name", ())).decode("utf-8", "replace")


class Gate:
    """Decides about one call."""

    def __init__(self, *, viewing: Collection[str]) -> None:
        """`viewing`: full names of the methods that a viewer may call; every other one is an operator's."""
        self._viewing = frozenset(viewing)

    def refusal(self, method: str, auth_context: AuthContext) -> str:
        """Why not, in one sentence; empty when the caller may."""
        is_viewing = method in self._viewing or method.startswith(_VIEWING_EVERYWHERE)
        needed = Role.VIEWER if is_viewing else Role.OPERATOR
        role, caller = role_of(auth_context), name_of(auth_context)
        verb = method.rpartition("/")[2]
        if role is not None and role >= needed:
            if needed is Role.OPERATOR:
                log.info("%s is called by %r", verb, caller)
            return ""
        has = "no role" if role is None else f"OU={role.unit}"
        sentence = (
            f"{verb} needs a certificate with OU={needed.unit} in its subject; that of {caller!r} has {has}"
        )
        log.warning("Refused: %s", sentence)
        return sentence


class RoleInterceptor(grpc.ServerInterceptor):
    """Asks the gate before each call of a threaded server."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        gate, method = self._gate, handler_call_details.method

        def guarded(behaviour: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[..., Any]:
            def checked(request: Any, context: grpc.ServicerContext) -> Any:
                if refusal := gate.refusal(method, context.auth_context()):
                    context.abort(grpc.StatusCode.PERMISSION_DENIED, refusal)
                return behaviour(request, context)

            return checked

        return _replaced(continuation(handler_call_details), guarded)


class AsyncRoleInterceptor(grpc.aio.ServerInterceptor):
    """Asks the gate before each call of an asyncio server."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        gate, method = self._gate, handler_call_details.method

        async def check(context: grpc.aio.ServicerContext) -> None:
            if refusal := gate.refusal(method, context.auth_context()):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, refusal)

        def guarded(behaviour: Callable[[Any, grpc.aio.ServicerContext], Any]) -> Callable[..., Any]:
            async def checked(request: Any, context: grpc.aio.ServicerContext) -> Any:
                await check(context)
                return await behaviour(request, context)

            async def checked_stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
                await check(context)
                async for response in behaviour(request, context):
                    yield response

            # The server tells the two kinds of streaming handlers apart by what they are.
            return checked_stream if inspect.isasyncgenfunction(behaviour) else checked

        return _replaced(await continuation(handler_call_details), guarded)


def _replaced(
    handler: grpc.RpcMethodHandler | None, guarded: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> grpc.RpcMethodHandler | None:
    """The handler with its behaviour guarded; None for methods that do not exist."""
    if handler is None:
        return None
    return replaced(handler, guarded, request_deserializer=handler.request_deserializer)


def replaced(
    handler: grpc.RpcMethodHandler,
    guarded: Callable[[Callable[..., Any]], Callable[..., Any]],
    *,
    request_deserializer: Callable[[bytes], Any] | None,
) -> grpc.RpcMethodHandler:
    """A handler of the same kind with another behaviour; it gets bytes where nothing is to parse them."""
    kinds = {
        (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
        (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
        (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
        (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
    }
    name, make = kinds[handler.request_streaming, handler.response_streaming]
    return make(
        guarded(getattr(handler, name)),
        request_deserializer=request_deserializer,
        response_serializer=handler.response_serializer,
    )
