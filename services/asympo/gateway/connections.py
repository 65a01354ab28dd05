"""Connections of a gateway: requests are parsed in C, where the other services have a parser in Python."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from asympo.common.http_server import BoundedConnection

MAX_HEAD_BYTES = 65536
"""Of a request's line and headers, or of what stands between two pieces of its body."""
MAX_REQUESTS_AHEAD = 8
"""Of one connection, before the first is answered; that one with more of them has ended is noticed late."""
MAX_BYTES_AHEAD = 2**20
"""Of the bodies of these, likewise."""


class GatewayConnection(BoundedConnection, HttpToolsProtocol):
    """Bounds what the parser itself does not: it keeps a head until it is complete, however long it gets.

    A caller that has left is noticed even if it has sent further requests ahead.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._num_unread = 0
        """Bytes since the parser last had something to say."""
        self._earlier: list[Any] = []
        """Requests without an answer that came before the newest."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for request in self._earlier:
            request.disconnected = True
            request.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._num_unread += len(data)
        super().data_received(data)
        if self._num_unread > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The headers are too long.")

    def on_headers_complete(self) -> None:
        self._num_unread = 0
        so_far = [*self._earlier, self.cycle] if self.cycle else []
        self._earlier = [request for request in so_far if not request.response_complete]
        super().on_headers_complete()
        self._read_on()

    def on_body(self, body: bytes) -> None:
        self._num_unread = 0
        super().on_body(body)
        self._read_on()

    def on_message_complete(self) -> None:
        self._num_unread = 0
        super().on_message_complete()

    def _read_on(self) -> None:
        """Where uvicorn stops behind a request that is sent ahead, and would not see the end."""
        so_far = [*self._earlier, self.cycle] if self.cycle else []
        ahead = [request for request in so_far if not request.response_complete][1:]
        num_bytes = sum(len(request.body) for request in ahead)
        if ahead and len(ahead) <= MAX_REQUESTS_AHEAD and num_bytes <= MAX_BYTES_AHEAD:
            self.flow.resume_reading()
