"""What a process says about itself: log lines, Prometheus metrics, JSON rows.

Logging is the standard library's: `log = logging.getLogger(__name__)`, lazy arguments, and numbers that a
machine should find again in `extra={"step": step}`.
"""

import datetime
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, TextIO

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, Metric

from asympo.common.jsonl import to_json
from asympo.common.logs.watch import LogWatch
from asympo.common.redaction import redact_text, redact_value

LogFormat = Literal["auto", "json", "text"]

DURATION_BUCKETS_SECONDS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
"""Upper bounds for every duration histogram: from a Redis round trip to a slow optimizer step."""

MAX_MESSAGE_CHARS = 8192
"""A message may quote what a stranger sent: more of it is no use to anybody."""
_MAX_EXCEPTION_CHARS = 8 * MAX_MESSAGE_CHARS
_QUIET_LOGGERS = ("uvicorn.access", "httpx", "httpx2", "httpcore", "urllib3", "asyncio")
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "color_message",
    "taskName",
}
_CORE_KEYS = frozenset({"time", "level", "service", "logger", "message", "exception"})
_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_ESCAPED_IN_BLOCK = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
_ESCAPED_IN_LINE = _ESCAPED_IN_BLOCK | {10: "\\n", 13: "\\r", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def _extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    # vLLM gives every record of the process fields of its own, whoever logs.
    return {
        key: redact_value(key, value)
        for key, value in vars(record).items()
        if key not in _STANDARD_FIELDS and not key.startswith("vllm_")
    }


def _shown(text: str, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Text of a log line without secrets, and not endless."""
    left_out = len(text) - max_chars
    return (
        redact_text(text)
        if left_out <= 0
        else f"{redact_text(text[:max_chars])}… ({left_out} more characters)"
    )


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, service, logger, message, the `extra` fields, exception."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        row: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": _shown(record.getMessage()),
        }
        for key, value in _extra_fields(record).items():
            row[f"{key}_" if key in _CORE_KEYS else key] = value
        if record.exc_info:
            row["exception"] = _shown(self.formatException(record.exc_info), _MAX_EXCEPTION_CHARS)
        elif record.exc_text:
            row["exception"] = _shown(record.exc_text, _MAX_EXCEPTION_CHARS)
        if record.stack_info:
            row["stack"] = record.stack_info
        return to_json(row)


class TextFormatter(logging.Formatter):
    """Local time, level, service, message, `extra` fields as key=value; a traceback follows on its own lines.

    Control characters are escaped: a message may quote text that a model or a stranger wrote.
    """

    def __init__(self, service: str, *, is_coloured: bool) -> None:
        super().__init__()
        self._service = service
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        extra = "".join(f" {key}={value}" for key, value in _extra_fields(record).items())
        message = _shown(record.getMessage() + extra).translate(_ESCAPED_IN_LINE)
        level = f"{record.levelname:<8}"
        if self._is_coloured and record.levelname in _COLOURS:
            level = f"\x1b[{_COLOURS[record.levelname]}m{level}\x1b[0m"
        line = f"{time} {level} {self._service}: {message}"
        if record.exc_info:
            exception = _shown(self.formatException(record.exc_info), _MAX_EXCEPTION_CHARS)
            line += "\n" + exception.translate(_ESCAPED_IN_BLOCK)
        return line


def _in_one_line(record: logging.LogRecord) -> bool:
    """gRPC's word on bytes that are no message: the caller's mistake, of which a traceback tells nothing."""
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = "Refused a call: %s", (str(record.exc_info[1]),)
        record.exc_info, record.levelno, record.levelname = None, logging.WARNING, "WARNING"
    return True


def set_up_logging(
    *, service: str, log_format: LogFormat = "auto", level: str = "INFO", stream: TextIO | None = None
) -> LogWatch:
    """Send every log event of this process to `stream` (standard error) in one format.

    `auto` is text on a terminal and JSON elsewhere. Also logs what would otherwise be printed bare: warnings
    and uncaught exceptions of any thread. Start uvicorn with `log_config=None` so that it does the same. A
    second call replaces the first. Raises ValueError for a level that logging does not know.

    What comes back counts warnings, and lets through only so many lines of one kind.
    """
    stream = stream if stream is not None else sys.stderr
    is_terminal = stream.isatty()
    handler = logging.StreamHandler(stream)
    if log_format == "json" or (log_format == "auto" and not is_terminal):
        handler.setFormatter(JsonFormatter(service))
    else:
        handler.setFormatter(
            TextFormatter(service, is_coloured=is_terminal and not os.environ.get("NO_COLOR"))
        )
    logging.getLogger("grpc._common").addFilter(_in_one_line)
    # It misses a package that would load code from the hub; what it does without is as good.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    root = logging.getLogger()
    root.setLevel(level.upper())
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    watch = LogWatch()
    handler.addFilter(watch)
    # A log that cannot be written (full disk) must not bury the terminal in tracebacks about logging.
    logging.raiseExceptions = False
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    return watch


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    logging.getLogger("asympo").critical("Uncaught %s", kind.__name__, exc_info=(kind, error, traceback))


def _log_uncaught_in_thread(event: threading.ExceptHookArgs) -> None:
    if event.exc_value is not None and not issubclass(event.exc_type, SystemExit):
        _log_uncaught(event.exc_type, event.exc_value, event.exc_traceback)


def new_registry(*, service: str, version: str) -> CollectorRegistry:
    """A registry of its own for one service, with process, platform and garbage-collector metrics."""
    registry = CollectorRegistry(auto_describe=True)
    prometheus_client.ProcessCollector(registry=registry)
    prometheus_client.PlatformCollector(registry=registry)
    prometheus_client.GCCollector(registry=registry)
    build = Gauge(
        "asympo_build_info", "Always 1; which build this is.", ["service", "version"], registry=registry
    )
    build.labels(service=service, version=version).set(1)
    return registry


def add_certificate_ends(
    registry: CollectorRegistry, *, service: str, ends: Mapping[str, Callable[[], float]]
) -> None:
    """When each certificate of a service ends, asked anew at every scrape."""
    gauge = Gauge(
        "asympo_certificate_expires_timestamp_seconds",
        "When a certificate of the service ends; not a number while its file cannot be read.",
        ["service", "certificate"],
        registry=registry,
    )
    for use, end in ends.items():
        gauge.labels(service=service, certificate=use).set_function(end)


class LateGauge(Gauge):
    """A gauge without labels that a scrape finds only once it is set: until then 0 would be a claim."""

    _is_set = False

    def set(self, value: float) -> None:
        super().set(value)
        self._is_set = True

    def unset(self) -> None:
        """It is no longer known."""
        self._is_set = False

    def collect(self) -> Iterable[Metric]:
        return super().collect() if self._is_set else ()


class MetricsEndpoint:
    """The ASGI application behind `/metrics`: `app.add_route("/metrics", MetricsEndpoint(registry))`.

    Content negotiation (text or OpenMetrics), gzip and `name[]` filters are prometheus_client's own.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._application = prometheus_client.make_asgi_app(registry)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._application(scope, receive, send)
