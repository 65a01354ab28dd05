"""The gRPC server of a service with an event loop: its own service, health, reflection when debugging."""

from collections.abc import Callable, Collection
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from asympo.common.control.door import ControlDoor
from asympo.common.control.messages import MessageInterceptor
from asympo.common.control.settings import ControlSettings


class ControlServer:
    """Serves one service behind the door; its health says SERVING once `set_serving` says so."""

    def __init__(
        self,
        *,
        name: str,
        add: Callable[[grpc.aio.Server], None],
        viewing: Collection[str],
        settings: ControlSettings,
        max_message_bytes: int,
    ) -> None:
        """`name` and `add` are the service's own; `viewing` are the methods for those who may look."""
        self._name = name
        self._add = add
        self._door = ControlDoor(settings, viewing=viewing)
        self._debug = settings.debug
        self._max_message_bytes = max_message_bytes
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self.port = 0
        """Bound port, once started; 0 for a unix socket."""

    async def start(self) -> None:
        """Bind and serve; BadSetting when the address is taken or a certificate is wrong."""
        options: tuple[tuple[str, Any], ...] = (
            *self._door.options,
            ("grpc.max_receive_message_length", self._max_message_bytes),
        )
        self._server = grpc.aio.server(
            options=options, interceptors=(*self._door.async_interceptors(), MessageInterceptor())
        )
        self._add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self._debug:
            from grpc_reflection.v1alpha import reflection

            names = (self._name, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.port = self._door.bind(self._server)
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, is_serving: bool) -> None:
        """What the health service says of us."""
        kinds = health_pb2.HealthCheckResponse
        for name in ("", self._name):
            await self._health.set(name, kinds.SERVING if is_serving else kinds.NOT_SERVING)

    async def stop(self, *, grace_seconds: float = 1.0) -> None:
        """End, giving calls in flight a while."""
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(grace=grace_seconds)
