"""Control services beyond their pods: only with certificates, and only for who is named."""

import tomllib
from typing import Any

import pytest

from deploy.chart import rendering
from deploy.chart.service_settings import settings_class
from tests.helm.conftest import CHART

EXAMPLE = "examples/external-redis/values.yaml"
PORTS = {
    service: settings_class(service).model_fields["grpc_port"].default for service in ("learner", "generator")
}


def by_component(things: list[dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: each
        for each in things
        if each["kind"] in kinds and not each["metadata"]["name"].endswith("-ranks")
    }


def grpc_ports(things: list[dict[str, Any]]) -> list[object]:
    """Everything that a rendering calls grpc: container ports, Service ports, ports of policies."""
    found: list[object] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            found.extend(
                each for each in node.get("ports", []) if "grpc" in (each.get("name"), each.get("port"))
            )
            for each in node.values():
                walk(each)
        elif isinstance(node, list):
            for each in node:
                walk(each)

    walk(things)
    return found


@pytest.mark.parametrize("service", PORTS)
def test_control_listens_where_its_service_and_policy_say_with_mounted_certificates(
    rendered: dict[str, list[dict[str, Any]]], service: str
) -> None:
    things = rendered[EXAMPLE]
    pod = by_component(things, "StatefulSet", "Deployment")[service]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = by_component(things, "ConfigMap")[service]["data"][f"{service}.toml"]
    settings = tomllib.loads(config)
    assert settings["grpc_host"] == "0.0.0.0"
    port = PORTS[service]
    assert settings["grpc_port"] == port
    assert {"name": "grpc", "containerPort": port, "protocol": "TCP"} in container["ports"]
    ports = by_component(things, "Service")[service]["spec"]["ports"]
    assert {"name": "grpc", "port": port, "targetPort": "grpc", "protocol": "TCP"} in ports
    mount = next(each for each in container["volumeMounts"] if each["name"] == "control-tls")
    # A file mounted by subPath would never change.
    assert mount == {"name": "control-tls", "mountPath": "/etc/asympo/control-tls", "readOnly": True}
    volume = next(each for each in pod["volumes"] if each["name"] == "control-tls")
    files = [{"key": key, "path": key} for key in ("ca.crt", "tls.crt", "tls.key")]
    assert volume["secret"] == {"secretName": "control-tls", "defaultMode": 0o440, "items": files}
    keys = {"certificate": "tls.crt", "key": "tls.key", "client_ca": "ca.crt"}
    assert settings["grpc_tls"] == {name: f"{mount['mountPath']}/{key}" for name, key in keys.items()}


@pytest.mark.parametrize("service", PORTS)
def test_only_named_peers_reach_the_control_services(
    rendered: dict[str, list[dict[str, Any]]], service: str
) -> None:
    policy = by_component(rendered[EXAMPLE], "NetworkPolicy")[service]["spec"]
    opened = [rule for rule in policy["ingress"] if {"port": "grpc", "protocol": "TCP"} in rule["ports"]]
    operators = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "operators"}}}
    assert opened == [{"from": [operators], "ports": [{"port": "grpc", "protocol": "TCP"}]}]


def test_without_certificates_nothing_names_the_control_services(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    for name, things in rendered.items():
        assert bool(grpc_ports(things)) is (name in (EXAMPLE, "ci/gateway-values.yaml")), name
    assert len(grpc_ports(rendered[EXAMPLE])) == 6


def test_generators_of_a_release_of_their_own_have_the_service_too() -> None:
    sets = ["control.tls.secret=s", "control.allowFrom[0].podSelector.matchLabels.team=a"]
    result = rendering.template(CHART, values=[CHART / "ci/generators-only-values.yaml"], sets=sets)
    assert result.returncode == 0, result.stderr
    services = [each for each in rendering.objects(result.stdout) if each["kind"] == "Service"]
    assert [each["metadata"]["name"] for each in services] == ["asympo-more-generator"]
    assert services[0]["spec"]["clusterIP"] == "None"
