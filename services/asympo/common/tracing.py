"""One trace for each group, from its lease to the policy that learnt from it, joined without any message.

Trace and root span are named by a digest of run and group id, so every process that knows the group knows its
trace, and nothing about it crosses the log. OpenTelemetry is an extra (`asympo[otel]`) and imported only when
tracing is on; its own environment variables (headers, certificates, sampler, queue sizes) apply.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from asympo.common.errors import BadSetting
from asympo.common.logs.watch import message_of
from asympo.common.proxies import is_own
from asympo.common.redaction import redact_text

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import IdGenerator
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float | bool]

CLOSE_SECONDS = 5.0
"""How long a process that ends waits for the collector to take what is left."""
_EXPORTER_LOG = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_MAX_PENDING = 8192


class TracingOptions(BaseModel):
    """Where traces of groups go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s/]+",
        description="OTLP over HTTP, as http://collector:4318; if not given, OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    share: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="share of groups that are traced; if not given, that of OTEL_TRACES_SAMPLER",
    )


def trace_ids(run: str, group_id: str) -> tuple[int, int]:
    """Trace id and id of its root span, the same wherever they are asked for."""
    digest = hashlib.sha256(f"{run}\n{group_id}".encode()).digest()
    return int.from_bytes(digest[:16], "big"), int.from_bytes(digest[16:24], "big")


class Tracing:
    """Takes finished spans and hands them to a background thread: never waits, never raises.

    Spans that the collector does not take, or that come while too many wait for it, are counted and gone.
    """

    def __init__(self, sink: "_Sink | None" = None) -> None:
        self._sink = sink

    @property
    def is_on(self) -> bool:
        """Whether spans go anywhere; if not, every method does nothing."""
        return self._sink is not None

    def record(
        self,
        group_id: str,
        name: str,
        *,
        begun_ns: int,
        ended_ns: int,
        is_root: bool = False,
        attributes: Attributes | None = None,
        error: str = "",
    ) -> None:
        """One span of a group; times in nanoseconds since 1970. From any thread."""
        if self._sink is not None:
            self._sink.record(
                group_id,
                name,
                begun_ns=begun_ns,
                ended_ns=max(begun_ns, ended_ns),
                is_root=is_root,
                attributes=attributes or {},
                error=error,
            )

    @contextmanager
    def span(self, group_id: str, name: str) -> Iterator[dict[str, str | int | float | bool]]:
        """A span around a block; the block fills in its attributes, an exception is noted and passed on."""
        attributes: dict[str, str | int | float | bool] = {}
        begun_ns, error = time.time_ns(), ""
        try:
            yield attributes
        except BaseException as raised:
            error = redact_text(f"{type(raised).__name__}: {raised}")
            raise
        finally:
            self.record(
                *(group_id, name),
                begun_ns=begun_ns,
                ended_ns=time.time_ns(),
                attributes=attributes,
                error=error,
            )

    def close(self) -> None:
        """Sends what is left, within CLOSE_SECONDS."""
        if self._sink is not None:
            self._sink.close()


def open_tracing(
    options: TracingOptions, *, run: str, service: str, instance: str, on_lost: Callable[[int], None]
) -> Tracing:
    """Tracing as the settings or OpenTelemetry's environment ask for it; off when neither does.

    `on_lost` counts spans that did not get through. Raises BadSetting when the extra is not installed.
    """
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    endpoint = options.endpoint or next(filter(None, map(os.environ.get, _ENDPOINT_VARIABLES)), None)
    if is_disabled or endpoint is None:
        return Tracing()
    try:
        import requests
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise BadSetting(
            f"traces are to go to {endpoint} and OpenTelemetry is not installed: install asympo[otel], or "
            "leave tracing.endpoint and OTEL_EXPORTER_OTLP_ENDPOINT unset"
        ) from None
    session = requests.Session()
    session.trust_env = not is_own(endpoint)
    exporter = OTLPSpanExporter(
        endpoint=f"{options.endpoint.rstrip('/')}/v1/traces" if options.endpoint else None, session=session
    )
    log.info("Traces of groups go to %s", endpoint)
    return Tracing(
        _Sink(
            exporter=exporter,
            endpoint=endpoint,
            run=run,
            resource={"service.name": f"asympo-{service}", "service.instance.id": instance},
            share=options.share,
            on_lost=on_lost,
        )
    )


class _Sink:
    """OpenTelemetry's side of it."""

    def __init__(
        self,
        *,
        exporter: "SpanExporter",
        endpoint: str,
        run: str,
        resource: Mapping[str, str],
        share: float | None,
        on_lost: Callable[[int], None],
    ) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

        self._run = run
        self._delivery = _Delivery(exporter, endpoint=endpoint, on_lost=on_lost)
        self._processor = BatchSpanProcessor(
            _as_exporter(self._delivery), max_queue_size=self._delivery.max_pending
        )
        self._lock = threading.Lock()
        self._ids: list[int] = []
        named = {key: value for key, value in resource.items() if not _is_named_outside(key)}
        provider = TracerProvider(
            sampler=None if share is None else TraceIdRatioBased(share),
            resource=Resource.create(named),
            id_generator=_id_generator(self._ids),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._processor)
        self._sampler = provider.sampler
        self._tracer = provider.get_tracer("asympo")

    def record(
        self,
        group_id: str,
        name: str,
        *,
        begun_ns: int,
        ended_ns: int,
        is_root: bool,
        attributes: Attributes,
        error: str,
    ) -> None:
        trace_id, root_id = trace_ids(self._run, group_id)
        if not self._sampler.should_sample(_context(None), trace_id, name).decision.is_sampled():
            return
        if not self._delivery.has_room():
            return
        attributes = {"asympo.run": self._run, "asympo.group_id": group_id, **attributes}
        with self._lock:
            if is_root:
                self._ids.extend((root_id, trace_id))
            span = self._tracer.start_span(
                name,
                context=_context(None if is_root else (trace_id, root_id)),
                attributes=attributes,
                start_time=begun_ns,
            )
            self._ids.clear()
        if error:
            from opentelemetry.trace import Status, StatusCode

            span.set_status(Status(StatusCode.ERROR, error))
        span.end(end_time=ended_ns)

    def close(self) -> None:
        """A collector that hangs must not hold up the end of the process."""
        closing = threading.Thread(target=self._processor.shutdown, name="traces-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        self._delivery.abandon()


class _Delivery:
    """Sends batches in the background thread of OpenTelemetry's processor, and counts what is lost."""

    def __init__(self, exporter: "SpanExporter", *, endpoint: str, on_lost: Callable[[int], None]) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._num_pending = 0
        self._num_lost_in_row = 0
        self._reason = _Reason()
        self.max_pending = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", _MAX_PENDING))

    def has_room(self) -> bool:
        """Takes a place in the queue for one span; counts it as lost when there is none."""
        with self._lock:
            if self._num_pending < self.max_pending:
                self._num_pending += 1
                return True
        self._on_lost(1)
        return False

    def send(self, spans: Any) -> Any:
        """The exporter's own result."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001  the edge of a background thread: counted below
            result = SpanExportResult.FAILURE
            self._reason.text = repr(error)
        with self._lock:
            # Fewer once they were given up: these are counted already.
            num_ours = min(len(spans), self._num_pending)
            self._num_pending -= num_ours
        if result is SpanExportResult.SUCCESS:
            if self._num_lost_in_row:
                log.info("The collector takes spans again, after %d lost", self._num_lost_in_row)
            self._num_lost_in_row = 0
            return result
        self._lose(num_ours)
        return result

    def _lose(self, count: int) -> None:
        if not count:
            return
        self._on_lost(count)
        if not self._num_lost_in_row:
            log.warning("Spans are lost, %s does not take them: %s", self._endpoint, self._reason.text)
        self._num_lost_in_row += count

    def abandon(self) -> None:
        """Ends an export that is still being tried, and counts what it leaves."""
        self._exporter.shutdown()
        with self._lock:
            num_left, self._num_pending = self._num_pending, 0
        self._lose(num_left)


class _Reason(logging.Handler):
    """What the exporter said last; it would say it at every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.text = "no reason given"
        exporter_log = logging.getLogger(_EXPORTER_LOG)
        exporter_log.addHandler(self)
        exporter_log.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.text = message_of(record)


def _as_exporter(delivery: _Delivery) -> "SpanExporter":
    from opentelemetry.sdk.trace.export import SpanExporter

    class Exporter(SpanExporter):
        def export(self, spans: Any) -> Any:
            return delivery.send(spans)

    return Exporter()


def _id_generator(wanted: list[int]) -> "IdGenerator":
    """Ids that were asked for, the trace's first, else random ones."""
    from opentelemetry.sdk.trace import IdGenerator, RandomIdGenerator

    class WantedIds(IdGenerator):
        _random = RandomIdGenerator()

        def generate_trace_id(self) -> int:
            return wanted.pop() if wanted else self._random.generate_trace_id()

        def generate_span_id(self) -> int:
            return wanted.pop() if wanted else self._random.generate_span_id()

    return WantedIds()


def _context(parent: tuple[int, int] | None) -> "Context":
    """Of the root span, or below it."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED)
    above = SpanContext(trace_id=parent[0], span_id=parent[1], is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(above), Context())


def _is_named_outside(key: str) -> bool:
    given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return f"{key}=" in given or (key == "service.name" and bool(os.environ.get("OTEL_SERVICE_NAME")))
