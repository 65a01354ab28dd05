"""JSON Schema of what a service's settings file may hold, read from the models that the code reads."""

from importlib import import_module
from typing import Any

from asympo.common.settings import ServiceSettings

CHOSEN_BY_CHART = (
    *("run", "redis_url", "checkpoint_root", "object_store", "deltas", "log_level", "log_format"),
    *("http_host", "http_port", "grpc_host", "grpc_port", "grpc_tls", "holder", "allowed_hosts"),
    "tracing",
    # Given as `model.path` or `model.download`.
    "model",
    # Files of Secrets.
    *("producers", "doors_token"),
)
"""Settings that follow from other values; giving them a second time could only contradict those."""


def settings_class(service: str) -> type[ServiceSettings]:
    """The class that `asympo <service>` loads."""
    module = import_module(f"asympo.{service}.settings")
    return getattr(module, f"{service.capitalize()}Settings")


def settings_schema(service: str) -> dict[str, Any]:
    """A closed schema without references; nothing is required, as the file may leave out any setting."""
    model = settings_class(service)
    whole = model.model_json_schema()
    schema = _inline(whole, whole.get("$defs", {}))
    for name in CHOSEN_BY_CHART:
        schema["properties"].pop(name, None)
    if service == "evaluator":
        task = settings_schema("learner")["properties"]["task"]
        evaluation = schema["properties"]["evals"]["items"]["properties"]
        # Keys of a task may stand beside those of an evaluation; `name` is its own.
        schema["properties"]["evals"]["items"]["properties"] = {
            **task["properties"],
            **evaluation,
            "task": task,
        }
    return {"type": "object", "additionalProperties": False, "properties": schema["properties"]}


def settings_defaults(service: str) -> dict[str, Any]:
    """What the code does where the file says nothing; for templates that need to know it."""
    return settings_class(service)().model_dump(mode="json")


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    """The schema with `$ref` replaced by what it names, and without the words that only describe a class."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        named = definitions[node["$ref"].rpartition("/")[2]]
        node = {**named, **{key: value for key, value in node.items() if key != "$ref"}}
    schema: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            schema[key] = {name: _inline(each, definitions) for name, each in value.items()}
        elif key not in ("$defs", "title", "default", "required", "format"):
            schema[key] = _inline(value, definitions)
    if schema.get("type") == "object" and "properties" in schema:
        schema["additionalProperties"] = False
    return schema
