"""A bucket in place of a shared volume: who mounts, knows and reaches what."""

import json
import re
import tomllib
from typing import Any

import pytest
import yaml
from asympo.common.object_store import DeltaOptions, ObjectStoreOptions
from pydantic import ValidationError

from deploy.chart import rendering
from tests.helm.conftest import CHART

VALUES = json.loads((CHART / "values.schema.json").read_text())["properties"]["checkpoints"]["properties"]
EXAMPLE = CHART / "examples/external-redis/values.yaml"


@pytest.fixture(scope="module")
def things() -> dict[tuple[str, str], Any]:
    result = rendering.template(CHART, values=[EXAMPLE])
    return {(each["kind"], each["metadata"]["name"]): each for each in rendering.objects(result.stdout)}


def pod_of(things: dict[tuple[str, str], Any], kind: str, role: str) -> Any:
    return things[kind, f"asympo-{role}"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(("kind", "role"), [("StatefulSet", "learner"), ("Deployment", "generator")])
def test_each_role_has_its_own_keys_and_the_authority_where_its_settings_look(
    things: dict[tuple[str, str], Any], kind: str, role: str
) -> None:
    settings = tomllib.loads(things["ConfigMap", f"asympo-{role}-settings"]["data"][f"{role}.toml"])
    options = ObjectStoreOptions(**settings["object_store"])
    container = pod_of(things, kind, role)["containers"][0]
    sources = {each["name"]: each.get("valueFrom", {}) for each in container["env"]}
    assert sources["AWS_ACCESS_KEY_ID"]["secretKeyRef"]["key"] == f"{role}-access-key-id"
    assert sources["AWS_SECRET_ACCESS_KEY"]["secretKeyRef"]["key"] == f"{role}-secret-access-key"
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    assert f"{mounts['object-store-ca']['mountPath']}/ca.crt" == str(options.ca_file)
    assert mounts["checkpoints"] == {"name": "checkpoints", "mountPath": "/checkpoints", "readOnly": False}


def test_only_the_learner_mounts_the_claim(things: dict[tuple[str, str], Any]) -> None:
    volumes = {
        role: {each["name"]: each for each in pod_of(things, kind, role)["volumes"]}["checkpoints"]
        for kind, role in (("StatefulSet", "learner"), ("Deployment", "generator"))
    }
    assert volumes["learner"]["persistentVolumeClaim"] == {"claimName": "learner-checkpoints"}
    assert volumes["generator"]["emptyDir"] == {"sizeLimit": "60Gi"}


@pytest.mark.parametrize("role", ["learner", "generator"])
def test_network_policy_opens_the_way_to_the_store(things: dict[tuple[str, str], Any], role: str) -> None:
    egress = things["NetworkPolicy", f"asympo-{role}"]["spec"]["egress"]
    assert {
        "ports": [{"port": 9000, "protocol": "TCP"}],
        "to": [{"ipBlock": {"cidr": "10.20.1.0/24"}}],
    } in egress


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3://bucket/a/b.c_d-e",
        "s3://Bucket",
        "s3://b",
        "s3://bucket/.a",
        "s3://bucket/a b",
        "gs://bucket",
    ],
)
def test_chart_and_services_take_the_same_buckets(url: str) -> None:
    pattern = VALUES["objectStore"]["properties"]["url"]["pattern"]
    try:
        ObjectStoreOptions(url=url)
    except ValidationError:
        assert not re.search(pattern, url)
    else:
        assert re.search(pattern, url)


def test_chart_and_services_agree_on_numbers_of_policies() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    shared, store = values["checkpoints"], values["checkpoints"]["objectStore"]
    for option, value, default in (
        (
            ObjectStoreOptions.model_fields["cached_policies"],
            VALUES["objectStore"]["properties"]["cachedPolicies"],
            store["cachedPolicies"],
        ),
        (DeltaOptions.model_fields["keyframe_every"], VALUES["keyframeEvery"], shared["keyframeEvery"]),
    ):
        assert default == option.default
        assert value["minimum"] == option.metadata[0].ge
        assert value.get("maximum") == (option.metadata[1].le if option.metadata[1:] else None)
