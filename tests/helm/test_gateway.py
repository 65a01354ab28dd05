"""The gateway of a release, as its service reads it."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from asympo.common.rollout_log.broker.users import acl_line
from asympo.gateway.settings import GatewaySettings

NAME = "ci/gateway-values.yaml"


@pytest.fixture
def gateway(rendered: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    found = {each["kind"]: each for each in rendered[NAME] if each["metadata"]["name"] == "asympo-gateway"}
    settings = [each for each in rendered[NAME] if each["metadata"]["name"] == "asympo-gateway-settings"]
    return found | {"ConfigMap": settings[0]}


def test_service_reads_its_settings_and_listens_where_its_service_says(
    gateway: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(gateway["ConfigMap"]["data"]["gateway.toml"])
    settings = GatewaySettings.load(["--config", str(path)], environ={})
    assert settings.session_seconds == 300
    spec = gateway["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": settings.http_port, "grpc": settings.grpc_port}
    served = {each["targetPort"]: each["port"] for each in gateway["Service"]["spec"]["ports"]}
    assert served == ports
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert settings.producers is not None
    assert str(settings.producers.parent) == mounts["producers"]
    assert str(settings.doors_token) == f"{mounts['doors-token']}/token"
    secrets = {each["name"]: each["secret"] for each in spec["volumes"] if "secret" in each}
    assert secrets["producers"]["items"] == [{"key": "producers.toml", "path": "producers.toml"}]
    assert spec["terminationGracePeriodSeconds"] > settings.drain_seconds


def test_broker_of_a_release_has_the_gateways_user_only_where_there_is_one(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    for name, things in rendered.items():
        rules = [each["data"]["users.acl"] for each in things if "users.acl" in each.get("data", {})]
        for text in rules:
            lines = [line for line in text.splitlines() if line.startswith("user gateway ")]
            assert bool(lines) == (name == NAME), name
            if lines:
                run = tomllib.loads(next(each for each in _settings(things)))["run"]
                wanted = acl_line("gateway", runs=[run], user="gateway").split(" on ")[1]
                assert set(wanted.split()) <= set(lines[0].split())


def _settings(things: list[dict[str, Any]]) -> list[str]:
    return [each["data"]["gateway.toml"] for each in things if "gateway.toml" in each.get("data", {})]
