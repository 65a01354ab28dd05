"""From deploy/chart/values.schema.yaml to the JSON Schema and to the commented values.yaml."""

import copy
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from asympo.common.names import RUN_NAME

from deploy.chart import alerts, kubernetes_kinds
from deploy.chart.service_settings import settings_schema

_WIDTH = 108
_LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_NOT_OF_POOLS = ("enabled", "pools", "serviceAccount")


def load(path: Path) -> dict[str, Any]:
    """The source with `use`, `include` and `settings` put in place: one schema object for all values."""
    text = path.read_text()
    for word, pattern in (("RUN_NAME", RUN_NAME), ("LABEL_KEY", _LABEL_KEY), ("LABEL_VALUE", _LABEL_VALUE)):
        text = text.replace(word, f"'{pattern}'")
    raw = yaml.safe_load(text)
    properties = {key: _expand(node, raw["definitions"]) for key, node in raw["values"].items()}
    for section in properties.values():
        for node in section.get("properties", {}).values():
            if "poolOf" in node:
                node["mayHave"] = [name for name in section["properties"] if name not in _NOT_OF_POOLS]
    return {"type": "object", "properties": properties}


def _expand(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    node = copy.deepcopy(node)
    if "use" in node:
        used, defaults = definitions[node.pop("use")], node.pop("defaults", {})
        node = {**copy.deepcopy(used), **node}
        for key, value in defaults.items():
            node["properties"][key]["default"] = value
    for name in node.pop("include", []):
        node["properties"] |= definitions[name]
    if "settings" in node:
        schema = settings_schema(node.pop("settings"))
        return {**schema, **node, "default": node.get("default", {})}
    if "alertsOf" in node:
        node |= {"default": {}, "properties": alerts.changes(node.pop("alertsOf"))}
    if "properties" in node:
        node["type"] = "object"
        node["properties"] = {key: _expand(each, definitions) for key, each in node["properties"].items()}
    if isinstance(node.get("additionalProperties"), dict):
        node["additionalProperties"] = _expand(node["additionalProperties"], definitions)
    if isinstance(node.get("items"), dict):
        node["items"] = _expand(node["items"], definitions)
    return node


def schema_text(source: dict[str, Any]) -> str:
    """The JSON schema for people to read, with what is Kubernetes' own a line for each kind."""
    schema = json_schema(source)
    kinds = [f'  "{name}": {json.dumps(each)}' for name, each in schema.pop("definitions").items()]
    return json.dumps(schema, indent=1)[:-2] + ',\n "definitions": {\n' + ",\n".join(kinds) + "\n }\n}\n"


def json_schema(source: dict[str, Any]) -> dict[str, Any]:
    """What helm checks values against: closed, every key described."""
    kinds: set[str] = set()
    schema = _closed(source, kinds)
    # Helm passes the values of parent charts to sub-charts.
    schema["properties"]["global"] = {
        "type": "object",
        "description": "Shared with other charts: imageRegistry and imagePullSecrets are read.",
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the asympo chart",
        **schema,
        # Apart from the properties, which pools refer to, as a pool may leave out anything.
        "allOf": [_needed(source)],
        "definitions": kubernetes_kinds.schemas(kinds) | alerts.definitions(),
    }


def _needed(node: dict[str, Any]) -> dict[str, Any]:
    """Keys that have to be there: Helm takes one with its default away where a file says nothing, or null."""
    inner = {key: _needed(each) for key, each in node["properties"].items() if _is_section(each)}
    names = [key for key, each in node["properties"].items() if key in inner or _counts(each)]
    found = {"required": names, "properties": {key: each for key, each in inner.items() if each["required"]}}
    return found if found["properties"] else {"required": names}


def _counts(node: dict[str, Any]) -> bool:
    """Whether its absence would be something else than the default, and null is no value of it."""
    default = node.get("default")
    is_empty = default is None or default is False or default in ("", [], {})
    return not is_empty and "null" not in node.get("type", ())


def _is_section(node: dict[str, Any]) -> bool:
    return "properties" in node and "default" not in node


def _closed(node: Any, kinds: set[str]) -> Any:
    """Without what only this file reads; collects the `kinds` of Kubernetes that are named."""
    if isinstance(node, list):
        return [_closed(item, kinds) for item in node]
    if not isinstance(node, dict):
        return node
    left_out = ("default", "properties", "kubernetes", "poolOf", "mayHave")
    schema = {key: _closed(value, kinds) for key, value in node.items() if key not in left_out}
    if "kubernetes" in node:
        kinds.add(node["kubernetes"])
        # Beside a reference nothing else is read.
        schema = {"allOf": [{"$ref": kubernetes_kinds.reference(node["kubernetes"])}], **schema}
    if "poolOf" in node:
        schema["additionalProperties"] = _pool(node["poolOf"], node["mayHave"])
    if "properties" in node:
        schema["properties"] = {key: _closed(each, kinds) for key, each in node["properties"].items()}
        schema["additionalProperties"] = False
    return schema


def _pool(section: str, names: list[str]) -> dict[str, Any]:
    """Any value of a section."""
    properties = {name: {"$ref": f"#/properties/{section}/properties/{name}"} for name in names}
    return {"type": "object", "additionalProperties": False, "properties": properties}


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One value a person can set."""

    path: tuple[str, ...]
    node: dict[str, Any]

    @property
    def default(self) -> str:
        """As YAML on one line."""
        return json.dumps(self.node.get("default")) if "default" in self.node else ""


def iter_leaves(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every value, in the order of the source; an object with a default of its own is one."""
    for key, each in node["properties"].items():
        if _is_section(each):
            yield from iter_leaves(each, (*path, key))
        else:
            yield Leaf(path=(*path, key), node=each)


def values_yaml(source: dict[str, Any]) -> str:
    """All values with their defaults, each under its description."""
    lines = [
        "# Values of the chart. Generated from deploy/chart/values.schema.yaml by `make chart-generate`.",
        "# The README has the same as a table; values.schema.json refuses keys that are not here.",
    ]
    _write(source, 0, lines)
    return "\n".join(lines) + "\n"


def _write(node: dict[str, Any], depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    for key, each in node["properties"].items():
        if depth == 0:
            lines.append("")
        lines += [
            f"{indent}# {line}" for line in textwrap.wrap(each["description"], _WIDTH - 2 - len(indent))
        ]
        if _is_section(each):
            lines.append(f"{indent}{key}:")
            _write(each, depth + 1, lines)
            continue
        value = each["default"]
        if not isinstance(value, (dict, list)) or not value:
            lines.append(f"{indent}{key}: {json.dumps(value)}")
            continue
        lines.append(f"{indent}{key}:")
        block = yaml.safe_dump(value, sort_keys=False, default_flow_style=False)
        lines += [f"{indent}  {line}" for line in block.splitlines()]
