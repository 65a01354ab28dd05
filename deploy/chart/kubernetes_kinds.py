"""Schemas of parts of Kubernetes' objects, from the newest version that the chart's checkers bring."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TOOLS = Path(__file__).resolve().parents[2] / ".cache/chart-tools"
_FOLDER = "venv/lib/python*/site-packages/kubernetes_validate/kubernetes-json-schema/v{version}.0-local"
NEWEST = "1.37"
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_WORDS = {
    ("Toleration", "operator"): ["Exists", "Equal", "Lt", "Gt"],
    ("Toleration", "effect"): ["NoSchedule", "PreferNoSchedule", "NoExecute"],
    ("TopologySpreadConstraint", "whenUnsatisfiable"): ["DoNotSchedule", "ScheduleAnyway"],
    ("NodeSelectorRequirement", "operator"): ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"],
    ("LabelSelectorRequirement", "operator"): ["In", "NotIn", "Exists", "DoesNotExist"],
    ("NetworkPolicyPort", "protocol"): ["TCP", "UDP", "SCTP"],
    ("Container", "imagePullPolicy"): ["Always", "IfNotPresent", "Never"],
}
"""What Kubernetes' schemas leave open and its API server does not."""


def reference(kind: str) -> str:
    """Where a schema that holds `schemas` has that kind."""
    return f"#/definitions/{kind}"


def schemas(kinds: set[str]) -> dict[str, Any]:
    """Closed schemas of the kinds and of all that they are made of, by name."""
    (folder,) = _TOOLS.glob(_FOLDER.format(version=NEWEST))
    known = json.loads((folder / "_definitions.json").read_text())["$defs"]
    found: dict[str, Any] = {}
    wanted = sorted(kinds)
    while wanted:
        kind = wanted.pop()
        if kind not in found:
            found[kind] = _schema(known[kind], kind)
            for (name, field), words in _WORDS.items():
                if kind.rpartition(".")[2] == name:
                    found[kind]["properties"][field] = {"enum": words}
            wanted += _named(found[kind])
    return dict(sorted(found.items()))


def _schema(node: Any, kind: str = "") -> Any:
    if isinstance(node, list):
        return [_schema(each) for each in node]
    if not isinstance(node, dict):
        return node
    if kind == _QUANTITY:
        return {"type": ["string", "number"]}
    if "$ref" in node:
        return {"$ref": reference(node["$ref"].rpartition("/")[2])}
    schema = {
        key: {name: _schema(each) for name, each in value.items()} if key == "properties" else _schema(value)
        for key, value in node.items()
        if key not in ("description", "format") and not key.startswith("x-kubernetes")
    }
    if "properties" in schema:
        schema["additionalProperties"] = False
    return schema


def _named(node: Any) -> Iterator[str]:
    if isinstance(node, list):
        for each in node:
            yield from _named(each)
    elif isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].rpartition("/")[2]
        for each in node.values():
            yield from _named(each)
