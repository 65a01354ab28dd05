"""Every PromQL expression that the product ships, and what it asks for."""

import json
from collections.abc import Iterator
from typing import Any

import yaml

from tests.golden import metrics as golden
from tests.observability.tools import DASHBOARDS, RULES

TARGET_LABELS = {"namespace", "run", "pod", "pool", "instance", "job"}
"""What scraping adds to every series."""
FOREIGN = {
    "kube_statefulset_replicas": {"namespace", "statefulset"},
    "kube_statefulset_status_replicas_ready": {"namespace", "statefulset"},
    "kube_pod_container_status_restarts_total": {"namespace", "pod", "container", "uid"},
    "kube_pod_init_container_status_restarts_total": {"namespace", "pod", "container", "uid"},
    "DCGM_FI_DEV_GPU_UTIL": {"exported_namespace", "exported_pod", "gpu"},
    "kubelet_volume_stats_available_bytes": {"namespace", "persistentvolumeclaim"},
    "kubelet_volume_stats_capacity_bytes": {"namespace", "persistentvolumeclaim"},
}
"""Series of kube-state-metrics, the kubelet and NVIDIA's DCGM exporter."""
_VARIABLES = {"$__rate_interval": "1m", "$namespace": ".*", "$run": ".*"}


def panel_queries() -> list[tuple[str, str]]:
    """Where it is, and the expression with Grafana's variables filled in."""
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                found.append((f"{path.stem}: {panel['title']} {target['refId']}", _filled(target["expr"])))
    return found


def annotation_queries() -> list[tuple[str, str]]:
    """The same of the marks for what happened."""
    return [
        (f"{path.stem}: {each['name']}", _filled(each["expr"]))
        for path in sorted(DASHBOARDS.glob("*.json"))
        for each in json.loads(path.read_text())["annotations"]["list"]
    ]


def _filled(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def rules() -> list[dict[str, Any]]:
    """Recording and alerting rules of the chart."""
    groups = [
        group for path in sorted(RULES.glob("*.yaml")) for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]


def known_labels() -> dict[str, set[str]]:
    """Series that exist, with their labels: those of the golden list, and recorded ones."""
    found = dict(FOREIGN)
    for line in golden.PATH.read_text().splitlines():
        name, rest = line.split(" ")
        labels = rest[rest.index("{") + 1 : -1]
        found[name] = TARGET_LABELS | set(filter(None, labels.split(",")))
    # The chart records how many generators each of its pools counts for.
    found["asympo:pool_weight"] = {"namespace", "run", "pool"}
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = {"namespace", "run", "pool"}
    return found


def selectors(node: Any) -> Iterator[tuple[str, set[str]]]:
    """Series names in a parsed expression, with the labels that are matched on."""
    if type(node).__name__ == "MatrixSelector":
        node = node.vector_selector
    if type(node).__name__ == "VectorSelector":
        yield node.name, {matcher.name for matcher in node.matchers.matchers}
        return
    for name in ("lhs", "rhs", "expr"):
        if (child := getattr(node, name, None)) is not None:
            yield from selectors(child)
    for child in getattr(node, "args", ()):
        yield from selectors(child)


def grouping_labels(node: Any) -> Iterator[str]:
    """Labels that aggregations keep."""
    modifier = getattr(node, "modifier", None)
    if type(node).__name__ == "AggregateExpr" and modifier is not None:
        yield from modifier.labels
    for name in ("lhs", "rhs", "expr"):
        if (child := getattr(node, name, None)) is not None:
            yield from grouping_labels(child)
    for child in getattr(node, "args", ()):
        yield from grouping_labels(child)
