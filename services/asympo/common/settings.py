"""Settings of every service: flags over environment over a TOML file, unknown names refused.

A service has one `settings.py` with `class GeneratorSettings(ServiceSettings)` and calls
`GeneratorSettings.load(argv)`. For `max_staleness` of the learner the three spellings are
`--max-staleness 1`, `ASYMPO_LEARNER_MAX_STALENESS=1` and `max_staleness = 1`; a key of a nested model
is `--sampling.max-tokens`, `ASYMPO_LEARNER_SAMPLING__MAX_TOKENS` and `[sampling] max_tokens`.
Nothing here imports torch, vLLM or Redis: `--help` and `--check-config` answer at once.
"""

import argparse
import difflib
import json
import os
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar, Union

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from asympo.common.commands import CommandParser
from asympo.common.errors import BadSetting
from asympo.common.names import RUN_NAME
from asympo.common.object_store import DeltaOptions, ObjectStoreOptions
from asympo.common.paths import SettingPath, given_path
from asympo.common.redaction import redact_url, redact_value, redacted
from asympo.common.tracing import TracingOptions

_SERVICE_LINK = re.compile(r"(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_(TCP|UDP|SCTP)(_.*)?)\Z")
ModelT = TypeVar("ModelT", bound=BaseModel)


SERVICES_ROOT = Path("runs/checkpoints")
"""Of services that are told no other; `asympo run` gives each run a directory of its own."""


class ServiceSettings(BaseModel):
    """Base of the settings of one service; holds what every service needs."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    service: ClassVar[str] = "service"
    """The command's name, and the middle part of its environment variables."""

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", description="broker that holds the rollout log"
    )
    run: str = Field(default="default", pattern=RUN_NAME, description="name of the run to work for")
    checkpoint_root: SettingPath = Field(
        default=SERVICES_ROOT, description="directory of all runs' checkpoints"
    )
    object_store: ObjectStoreOptions = ObjectStoreOptions()
    deltas: DeltaOptions = DeltaOptions()
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level that is logged"
    )
    log_format: Literal["auto", "text", "json"] = Field(
        default="auto", description="auto: text on a terminal, otherwise JSON"
    )
    tracing: TracingOptions = TracingOptions()

    @classmethod
    def load(cls, argv: Sequence[str], *, environ: Mapping[str, str] | None = None) -> Self:
        """Settings from flags over environment over the file of `--config`.

        Raises BadSetting with one sentence. `--help` and `--check-config` print and exit 0.
        """
        environ = os.environ if environ is None else environ
        options = list(iter_options(cls))
        flags, control = _read_flags(argv, options, service=cls.service)
        file_values = read_toml(control.config) if control.config else {}
        env_values, env_names = _read_environment(environ, options, service=cls.service)
        origin = dict.fromkeys(_leaves(file_values), f"in {control.config}")
        origin |= {path: f"in the environment variable {name}" for path, name in env_names.items()}
        origin |= {path: f"for --{_flag(path)}" for path in _leaves(flags)}
        settings = validate(cls, merge(file_values, env_values, flags), origin=origin)
        if control.check_config:
            sys.stdout.write(settings.to_toml())
            raise SystemExit(0)
        return settings

    def to_toml(self, *, redact: bool = True) -> str:
        """The resolved settings as TOML that `--config` reads; passwords masked unless told otherwise."""
        values = self.model_dump(mode="json")
        return dump_toml(redacted(values) if redact else values, comment=f"asympo {self.service}")


@dataclass(frozen=True, kw_only=True)
class Option:
    """One leaf of a settings model, nested ones included."""

    path: tuple[str, ...]
    """Field names from the root to the leaf."""
    field: FieldInfo
    """What pydantic knows of it."""


def iter_options(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every leaf that can be set; a nested model contributes its own leaves."""
    for name, field in model.model_fields.items():
        nested = _nested_model(field.annotation)
        if nested is None:
            yield Option(path=(*path, name), field=field)
        else:
            yield from iter_options(nested, (*path, name))


def validate(
    model: type[ModelT], values: Mapping[str, Any], *, origin: Mapping[tuple[str, ...], str] | None = None
) -> ModelT:
    """An instance of `model`, or BadSetting with one sentence about the first thing wrong."""
    try:
        return model(**values)
    except ValidationError as error:
        raise BadSetting(_sentence(model, error, origin or {})) from None


def add_object_store_flags(parser: argparse.ArgumentParser) -> None:
    """Where a service's settings have `object_store`."""
    for name in ("url", "endpoint", "region", "ca-file"):
        parser.add_argument(
            f"--object-store.{name}", help=f"object_store.{name.replace('-', '_')} of the run's services"
        )


def object_store_of(
    arguments: argparse.Namespace, settings: Mapping[str, Any] | None = None
) -> ObjectStoreOptions | None:
    """The store that flags name, or else values of `settings`; None without one. Raises BadSetting."""
    given = {name: vars(arguments).get(f"object_store.{name}") for name in ObjectStoreOptions.model_fields}
    values = {**(settings or {}), **{name: value for name, value in given.items() if value is not None}}
    options = validate(ObjectStoreOptions, values)
    return options if options.is_given else None


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file; BadSetting when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSetting(f"cannot read the settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"the settings file {path} is not TOML: {error}") from None
    except RecursionError:
        raise BadSetting(f"the settings file {path} is nested too deeply") from None


def dump_toml(values: Mapping[str, Any], *, comment: str = "") -> str:
    """Text that `read_toml` turns back into `values`; keys whose value is None are left out."""
    head = f"# {comment}\n" if comment else ""
    return head + tomli_w.dumps(_toml_value(values))


def _toml_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _toml_value(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [_toml_value(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers win; tables are merged key by key."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            if isinstance(below, Mapping) and isinstance(value, Mapping):
                value = merge(below, value)
            result[key] = value
    return result


def nearest(given: str, valid: Sequence[str]) -> str:
    """A half-sentence naming the valid spelling nearest to `given`, or where to look."""
    close = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "--help lists what there is"


# --- flags -----------------------------------------------------------------------------------------


def _read_flags(
    argv: Sequence[str], options: Sequence[Option], *, service: str
) -> tuple[dict[str, Any], argparse.Namespace]:
    parser = CommandParser(
        prog=f"asympo {service}",
        argument_default=argparse.SUPPRESS,
        description="Flags override environment variables, which override the settings file.",
    )
    parser.add_argument(
        "--config", type=given_path, default=None, metavar="FILE", help="settings file (TOML)"
    )
    parser.add_argument(
        "--check-config", action="store_true", default=False, help="print the resolved settings and exit"
    )
    for option in options:
        _add_flag(parser, option)
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        names = ["--" + _flag(option.path) for option in options] + ["--config", "--check-config"]
        given = unknown[0].partition("=")[0]
        raise BadSetting(f"asympo {service} has no flag {given}: {nearest(given, names)}")
    given_flags = vars(namespace)
    values: dict[str, Any] = {}
    for option in options:
        key = ".".join(option.path)
        if key in given_flags:
            _put(values, option.path, _from_text(given_flags[key], option.field))
    return values, argparse.Namespace(config=given_flags["config"], check_config=given_flags["check_config"])


def _add_flag(parser: argparse.ArgumentParser, option: Option) -> None:
    field = option.field
    extra: dict[str, Any] = {"metavar": _type_name(field.annotation)}
    if _accepts(field.annotation, bool):
        extra |= {"nargs": "?", "const": "true"}
    elif _is_sequence(field.annotation):
        extra |= {"action": "append"}
    default = field.get_default(call_default_factory=True, validated_data={})
    shown = "required" if field.is_required() else f"default {_shown(default)}"
    text = f"{field.description} ({shown})" if field.description else shown
    parser.add_argument(
        "--" + _flag(option.path), dest=".".join(option.path), help=text.replace("%", "%%"), **extra
    )


def _flag(path: Sequence[str]) -> str:
    return ".".join(path).replace("_", "-")


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return redact_url(default) or "''"
    return str(default)


# --- environment -----------------------------------------------------------------------------------


def _read_environment(
    environ: Mapping[str, str], options: Sequence[Option], *, service: str
) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    prefix = f"ASYMPO_{service.upper().replace('-', '_')}_"
    by_name = {prefix + "__".join(option.path).upper(): option for option in options}
    values: dict[str, Any] = {}
    names: dict[tuple[str, ...], str] = {}
    if ("redis_url",) in {option.path for option in options} and environ.get("REDIS_URL"):
        values["redis_url"] = environ["REDIS_URL"]
        names[("redis_url",)] = "REDIS_URL"
    for name in sorted(environ):
        if not name.startswith(prefix) or _is_service_link(name.removeprefix(prefix), environ[name]):
            continue
        if name not in by_name:
            raise BadSetting(
                f"the environment variable {name} is not a setting of {service}: "
                f"{nearest(name, list(by_name))}"
            )
        option = by_name[name]
        _put(values, option.path, _from_text(environ[name], option.field))
        names[option.path] = name
    return values, names


def _is_service_link(name: str, value: str) -> bool:
    """What Kubernetes puts into every container for a Service called asympo-<service>; not ours to refuse."""
    return bool(_SERVICE_LINK.match(name)) or (name == "PORT" and "://" in value)


# --- values and their sentences --------------------------------------------------------------------


def _from_text(text: str | list[str], field: FieldInfo) -> Any:
    """What a flag or variable says, as far as text must be taken apart before pydantic sees it."""
    if isinstance(text, list):
        if len(text) == 1 and text[0].startswith("["):
            return _json_or_text(text[0])
        return list(text)
    if text.lower() == "none" and _accepts(field.annotation, type(None)):
        return None
    if _is_sequence(field.annotation):
        return _json_or_text(text) if text.startswith("[") else [part for part in text.split(",") if part]
    return _json_or_text(text) if text.startswith(("{", "[")) else text


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))


def _members(annotation: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(annotation)
    return typing.get_args(annotation) if origin in (Union, types.UnionType) else (annotation,)


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    for member in _members(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def _accepts(annotation: Any, kind: type) -> bool:
    return kind in _members(annotation)


def _is_sequence(annotation: Any) -> bool:
    return any(typing.get_origin(member) in (list, tuple, set, frozenset) for member in _members(annotation))


def _type_name(annotation: Any) -> str:
    member = next((member for member in _members(annotation) if member is not type(None)), annotation)
    if typing.get_origin(member) is Literal:
        return "{" + ",".join(str(value) for value in typing.get_args(member)) + "}"
    words = {bool: "true|false", int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}
    return words.get(member, "VALUE")


def problem_of(error: ValidationError) -> str:
    """Where the first mistake is and what it is, for a sentence that says whose."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'as a whole'}: {first['msg']}"


def _sentence(model: type[BaseModel], error: ValidationError, origin: Mapping[tuple[str, ...], str]) -> str:
    first, *others = error.errors(include_url=False)
    path = tuple(str(part) for part in first["loc"])
    name = ".".join(path)
    where = next((origin[path[:end]] for end in range(len(path), 0, -1) if path[:end] in origin), "")
    more = f" ({len(others)} more settings are wrong)" if len(others) > 1 else ""
    more = " (one more setting is wrong)" if len(others) == 1 else more
    if first["type"] == "extra_forbidden":
        valid = [".".join(option.path) for option in iter_options(model)]
        return f"there is no setting {name}{' ' + where if where else ''}: {nearest(name, valid)}{more}"
    if first["type"] == "missing":
        return f"the setting {name} is missing: give --{_flag(path)} or put it into the settings file{more}"
    problem = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    problem = problem[:1].lower() + problem[1:]
    if not name:
        return f"{problem}{more}"
    given = first["input"]
    for part in path:
        given = redact_value(part, given)
    return f"the setting {name} was given {given!r}{' ' + where if where else ''}: {problem}{more}"
