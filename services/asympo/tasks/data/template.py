"""Jinja templates over the columns of a row: sandboxed, and a name that is not there is an error."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from asympo.common.errors import BadSetting

_MISSING = object()


@lru_cache(maxsize=64)
def compile_template(source: str, setting: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from columns to text; BadSetting when the source is no template, and for each bad row."""
    try:
        from jinja2 import StrictUndefined, TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise BadSetting(
            f"{setting} is a template, which needs the jinja2 library: pip install jinja2"
        ) from error
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    try:
        template = environment.from_string(source)
    except TemplateError as error:
        raise BadSetting(f"{setting} {source!r} is not a Jinja template: {error}") from error

    def render(columns: Mapping[str, Any]) -> str:
        try:
            return template.render(columns)
        except Exception as error:
            # What a template calls (a method of a text, a filter) raises errors of its own.
            raise BadSetting(
                f"{setting} {source!r} does not fit a row with columns {', '.join(columns)}: {error}"
            ) from error

    return render


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
