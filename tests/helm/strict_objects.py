"""Checks rendered objects strictly: unknown kinds, fields and quantities are errors.

Runs in the chart tools' Python. Reads JSON `{"objects": [[where, object], ...], "versions": ["1.25", ...],
"crds": FOLDER or null}` from standard input and prints a JSON list of sentences.
"""

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate.utils
import yaml

# It reads megabytes of schemas again for each object.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)
kubernetes_validate.utils.all_versions = cache(kubernetes_validate.utils.all_versions)

_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?\Z")
_CUSTOM_FILES = {
    "ServiceMonitor": "servicemonitor.json",
    "PodMonitor": "podmonitor.json",
    "PrometheusRule": "prometheusrule.json",
    "ScaledObject": "keda_scaledobject.yaml",
    "LeaderWorkerSet": "lws.yaml",
    "JobSet": "jobset.yaml",
}


def problems(request: dict[str, Any]) -> Iterator[str]:
    """Sentences about everything wrong."""
    crds = Path(request["crds"]) if request["crds"] else None
    for where, thing in request["objects"]:
        name = f"{where}: {thing.get('kind')} {thing.get('metadata', {}).get('name')}"
        yield from (f"{name}: {bad} is no quantity" for bad in bad_quantities(thing))
        yield from (f"{name}: {bad} is there twice" for bad in twice(thing))
        if "." in thing["apiVersion"].partition("/")[0] and not thing["apiVersion"].partition("/")[
            0
        ].endswith(".k8s.io"):
            yield from (f"{name}: {problem}" for problem in custom_problems(thing, crds))
            continue
        for version in request["versions"]:
            try:
                kubernetes_validate.validate(thing, version, strict=True)
            except kubernetes_validate.SchemaNotFoundError:
                yield f"{name}: Kubernetes {version} does not know {thing['apiVersion']} {thing['kind']}"
            except kubernetes_validate.ValidationError as error:
                yield f"{name}: Kubernetes {version}: {list(error.path)}: {error.message}"


def bad_quantities(node: Any, key: str = "") -> Iterator[str]:
    """Values under requests, limits and sizeLimit that are no quantities."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ("requests", "limits") and isinstance(value, dict):
                yield from (str(each) for each in value.values() if not _QUANTITY.match(str(each)))
            elif name == "sizeLimit" and not _QUANTITY.match(str(value)):
                yield str(value)
            else:
                yield from bad_quantities(value, name)
    elif isinstance(node, list):
        for each in node:
            yield from bad_quantities(each, key)


def twice(node: Any) -> Iterator[str]:
    """What Kubernetes wants once in a list of a pod: names, and paths of mounts."""
    if isinstance(node, dict):
        for key, each in node.items():
            if key in ("env", "volumes", "containers", "volumeMounts"):
                told = [one["mountPath" if key == "volumeMounts" else "name"] for one in each]
                yield from (f"{one} of {key}" for one in set(told) if told.count(one) > 1)
            yield from twice(each)
    elif isinstance(node, list):
        for each in node:
            yield from twice(each)


def custom_problems(thing: dict[str, Any], crds: Path | None) -> Iterator[str]:
    """A custom resource against the schema of its definition, closed."""
    file = _CUSTOM_FILES.get(thing["kind"])
    if file is None:
        yield f"no schema is known for {thing['apiVersion']}"
        return
    if crds is None:
        return
    schema = custom_schema(crds / file, thing["apiVersion"].partition("/")[2])
    if schema is None:
        yield f"{thing['apiVersion']} is not defined"
        return
    for error in jsonschema.Draft7Validator(schema).iter_errors({**thing, "metadata": {}}):
        yield f"{list(error.absolute_path)}: {error.message[:300]}"


@cache
def custom_schema(path: Path, version: str) -> Any:
    """The closed schema of this version; None where the definition has no such version."""
    schema = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    if schema.get("kind") == "CustomResourceDefinition":
        versions = [each for each in schema["spec"]["versions"] if each["name"] == version]
        if not versions:
            return None
        schema = versions[0]["schema"]["openAPIV3Schema"]
    return closed(schema)


def closed(node: Any) -> Any:
    """The schema with unknown fields refused where the definition does not say otherwise."""
    if isinstance(node, list):
        return [closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    schema = {}
    for key, value in node.items():
        schema[key] = (
            {name: closed(each) for name, each in value.items()} if key == "properties" else closed(value)
        )
    if node.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    is_open = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if isinstance(node.get("properties"), dict) and not is_open:
        schema["additionalProperties"] = False
    return schema


if __name__ == "__main__":
    print(json.dumps(list(problems(json.load(sys.stdin)))))
