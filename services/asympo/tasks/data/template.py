"""Jinja templates over the columns of a row: sandboxed, and a name that is not there is an error."""

import ctypes
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import lru_cache
from typing import Any

import psutil

from asympo.common.errors import BadSetting

_MISSING = object()


_SECONDS = 5.0
_GROWTH_BYTES = 2**30
_MAX_CHARS = 2**20
_LARGEST_POWER = 64
_POLL_SECONDS = 0.02


@lru_cache(maxsize=64)
def compile_template(source: str, setting: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from columns to text; BadSetting when the source is no template, and for each bad row.

    A template may come with somebody else's data: it reaches the row alone, for five seconds and one GiB.
    """
    try:
        from jinja2 import StrictUndefined, TemplateError, nodes
    except ImportError as error:
        raise BadSetting(
            f"{setting} is a template, which needs the jinja2 library: pip install jinja2"
        ) from error
    environment = _environment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        template = environment.from_string(source)
        # What neither repeats nor calls anything ends by itself.
        is_plain = environment.parse(source).find((nodes.For, nodes.Macro, nodes.Call, nodes.Mul)) is None
    except (TemplateError, RecursionError, OverflowError, MemoryError) as error:
        raise BadSetting(f"{setting} {source[:200]!r} is not a Jinja template: {error}") from error

    def render(columns: Mapping[str, Any]) -> str:
        try:
            return template.render(columns) if is_plain else _within_limits(lambda: template.render(columns))
        except Exception as error:
            # What a template calls (a method of a text, a filter) raises errors of its own.
            raise BadSetting(
                f"{setting} {source[:200]!r} does not fit a row with columns {', '.join(columns)}: {error}"
            ) from error

    return render


def _environment(**options: Any) -> Any:
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):
        """One product or power would neither end nor let anything else run."""

        intercepted_binops = frozenset({"*", "**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [each if isinstance(each, int | float) else len(each) for each in (left, right)]
            if operator == "**" and max(map(abs, sizes)) > _LARGEST_POWER:
                raise SecurityError(f"powers of numbers above {_LARGEST_POWER} are refused")
            if operator == "*" and abs(sizes[0]) * abs(sizes[1]) > _MAX_CHARS:
                raise SecurityError(f"products above {_MAX_CHARS} are refused")
            return super().call_binop(context, operator, left, right)

    return Bounded(**options)


def _within_limits(render: Callable[[], str]) -> str:
    """Its result, or a RuntimeError when it takes too much."""
    outcome: Future[str] = Future()

    def work() -> None:
        try:
            outcome.set_result(render())
        except BaseException as error:  # noqa: BLE001  handed over
            outcome.set_exception(error)

    memory, deadline = psutil.Process().memory_info, time.monotonic() + _SECONDS
    before = memory().rss
    thread = threading.Thread(target=work, name="template", daemon=True)
    thread.start()
    while True:
        try:
            return outcome.result(timeout=_POLL_SECONDS)
        except TimeoutError:
            if outcome.done():
                raise
        is_late, grown = time.monotonic() > deadline, memory().rss - before
        if is_late or grown > _GROWTH_BYTES:
            # A template is Python code once compiled: the next of its instructions raises this.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
            )
            limit = f"{_SECONDS:g} s" if is_late else f"{_GROWTH_BYTES >> 20} MiB"
            raise RuntimeError(f"it took more than {limit}")


def map_columns(row: Mapping[str, Any], mapping: Mapping[str, str], where: str) -> dict[str, Any]:
    """The row with the mapping's columns beside, or in place of, its own."""
    mapped = dict(row)
    for target, source in mapping.items():
        if "{{" in source or "{%" in source:
            mapped[target] = compile_template(source, f"task.columns.{target}")(row)
            continue
        value = look_up(row, source)
        if value is _MISSING:
            raise BadSetting(
                f"task.columns.{target} names column {source}, which {where} does not have: it has "
                f"{', '.join(row)}"
            )
        mapped[target] = value
    return mapped


def look_up(row: Mapping[str, Any], path: str, default: Any = _MISSING) -> Any:
    """The value of a column, or of `a.b` inside the structure that column a holds."""
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value
