"""Where a control service listens, and who may come in."""

from collections.abc import Collection

import grpc

from asympo.common.control.certificates import Certificates
from asympo.common.control.roles import AsyncRoleInterceptor, Gate, RoleInterceptor
from asympo.common.control.settings import ControlSettings
from asympo.common.errors import BadSetting

_MAX_CONNECTION_MS = 3_600_000
"""An open connection keeps the rights it was opened with: after this long a caller must come again."""
_LAST_CALLS_MS = 900_000
"""Time for calls in flight when a connection is that old; longer than the longest call."""


class ControlDoor:
    """What a gRPC server needs to know of its door, threaded or asyncio."""

    def __init__(self, settings: ControlSettings, *, viewing: Collection[str]) -> None:
        """`viewing`: full names of the methods that change nothing, such as `/asympo.v1.X/Status`."""
        self._settings = settings
        self._gate = Gate(viewing=viewing)

    @property
    def options(self) -> tuple[tuple[str, int], ...]:
        """Arguments of the server."""
        # Without this a second process may share the port and take half of the calls.
        options = (("grpc.so_reuseport", 0),)
        if not self._settings.grpc_tls.is_given:
            return options
        return (
            *options,
            ("grpc.max_connection_age_ms", _MAX_CONNECTION_MS),
            ("grpc.max_connection_age_grace_ms", _LAST_CALLS_MS),
        )

    def interceptors(self) -> tuple[RoleInterceptor, ...]:
        """Of a threaded server."""
        return (RoleInterceptor(self._gate),) if self._settings.grpc_tls.is_given else ()

    def async_interceptors(self) -> tuple[AsyncRoleInterceptor, ...]:
        """Of an asyncio server."""
        return (AsyncRoleInterceptor(self._gate),) if self._settings.grpc_tls.is_given else ()

    def bind(self, server: grpc.Server | grpc.aio.Server) -> int:
        """The bound port, 0 for a unix socket; BadSetting when it is taken or a certificate is wrong."""
        settings, address = self._settings, self._settings.grpc_address
        credentials = Certificates(settings.grpc_tls).credentials() if settings.grpc_tls.is_given else None
        try:
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise BadSetting(f"cannot listen on {address}: choose another grpc_host or grpc_port") from error
        return 0 if address.startswith("unix:") else int(port)
