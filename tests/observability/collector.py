"""A collector of traces: OTLP over real HTTP, decoded with OpenTelemetry's own messages."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages


@dataclass(frozen=True, kw_only=True)
class Span:
    """One that arrived."""

    trace_id: int
    span_id: int
    parent_id: int
    """0 for a root."""
    name: str
    service: str
    attributes: dict[str, Any]
    begun_ns: int
    ended_ns: int
    is_error: bool


class Collector:
    """Keeps every span; `status` is what it answers."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        self.status = 200
        self._arrived = threading.Condition()
        self._spans: list[Span] = []

    @property
    def spans(self) -> list[Span]:
        with self._arrived:
            return list(self._spans)

    def receive(self, body: bytes) -> None:
        request = messages.ExportTraceServiceRequest.FromString(body)
        with self._arrived:
            for resource in request.resource_spans:
                service = _attributes(resource.resource.attributes)["service.name"]
                for scope in resource.scope_spans:
                    self._spans += [_span(each, service) for each in scope.spans]
            self._arrived.notify_all()

    def wait_for(self, condition: Any, *, seconds: float) -> list[Span]:
        """All spans, once the condition on them holds."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: condition(self._spans), seconds), "waited in vain"
            return list(self._spans)


@contextmanager
def collector() -> Iterator[Collector]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.collector = Collector(server)  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.collector  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        keeper = self.server.collector  # type: ignore[attr-defined]
        is_taken = self.path == "/v1/traces" and keeper.status == 200
        if is_taken:
            keeper.receive(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        self.send_response(keeper.status if self.path == "/v1/traces" else 404)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


def _span(span: Any, service: str) -> Span:
    return Span(
        trace_id=int.from_bytes(span.trace_id, "big"),
        span_id=int.from_bytes(span.span_id, "big"),
        parent_id=int.from_bytes(span.parent_span_id, "big"),
        name=span.name,
        service=service,
        attributes=_attributes(span.attributes),
        begun_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        is_error=span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
