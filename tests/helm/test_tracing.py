"""Traces: where they go, and that the way is open."""

import tomllib
from typing import Any

import pytest

WITH, WITHOUT = "ci/monitoring-values.yaml", "examples/laptop-cpu/values.yaml"


def settings(things: list[dict[str, Any]], service: str) -> dict[str, Any]:
    (text,) = (
        each["data"][f"{service}.toml"]
        for each in things
        if each["kind"] == "ConfigMap" and f"{service}.toml" in each["data"]
    )
    return tomllib.loads(text)


@pytest.mark.parametrize("service", ["learner", "generator"])
def test_both_services_send_the_same_share_to_the_collector_and_may_reach_it(
    rendered: dict[str, list[dict[str, Any]]], service: str
) -> None:
    things = rendered[WITH]
    assert settings(things, service)["tracing"] == {
        "endpoint": "http://collector.monitoring:4318",
        "share": 0.1,
    }
    (policy,) = (
        each["spec"]
        for each in things
        if each["kind"] == "NetworkPolicy"
        and each["metadata"]["labels"]["app.kubernetes.io/component"] == service
    )
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert {"to": [monitoring], "ports": [{"port": 4318, "protocol": "TCP"}]} in policy["egress"]
    assert "tracing" not in settings(rendered[WITHOUT], service)
