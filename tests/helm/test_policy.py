"""Rules that every rendered pod and port keeps."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.helm.conftest import CHART


def pods(rendered: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(where, pod's metadata, pod's spec) of every pod in every rendering."""
    for name, things in rendered.items():
        for thing in things:
            where = f"{name}: {thing['kind']} {thing['metadata']['name']}"
            if thing["kind"] == "Pod":
                yield where, thing["metadata"], thing["spec"]
            elif thing["kind"] in ("Deployment", "StatefulSet", "Job", "DaemonSet"):
                template = thing["spec"]["template"]
                yield where, with_labels(template, SET, f"{thing['metadata']['name']}-0"), template["spec"]
            elif thing["kind"] == "LeaderWorkerSet":
                templates = thing["spec"]["leaderWorkerTemplate"]
                for index, template in enumerate((templates["leaderTemplate"], templates["workerTemplate"])):
                    yield where, with_labels(template, GROUP, str(index)), template["spec"]


SET, GROUP = "statefulset.kubernetes.io/pod-name", "leaderworkerset.sigs.k8s.io/worker-index"


def with_labels(template: dict[str, Any], label: str, value: str) -> dict[str, Any]:
    """The template's metadata with the label that the controller gives to a pod."""
    return {**template["metadata"], "labels": {**template["metadata"]["labels"], label: value}}


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec["containers"], *spec.get("initContainers", [])]


def test_pods_meet_the_restricted_level(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for where, _, spec in pods(rendered):
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, where
        assert context["runAsUser"] >= 1, where
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            assert not spec.get(key), where
        allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "name"}
        assert all(set(volume) <= allowed for volume in spec.get("volumes", [])), where
        for container in containers(spec):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, where
            assert security["readOnlyRootFilesystem"] is True, where
            assert security["capabilities"] == {"drop": ["ALL"]}, where
            assert not security.get("privileged"), where


def test_pods_mount_no_token_and_get_no_service_links(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for where, _, spec in pods(rendered):
        assert spec["automountServiceAccountToken"] is False, where
        assert spec["enableServiceLinks"] is False, where
    for things in rendered.values():
        for account in (each for each in things if each["kind"] == "ServiceAccount"):
            assert account["automountServiceAccountToken"] is False
        # No service talks to Kubernetes, so nobody is given rights.
        assert not [each["kind"] for each in things if "Role" in each["kind"]]


def test_containers_have_memory_limits_requests_and_pinned_images(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    for where, _, spec in pods(rendered):
        for container in containers(spec):
            assert container["resources"]["limits"]["memory"], where
            assert container["resources"]["requests"]["cpu"], where
            image = container["image"].rpartition("/")[2]
            assert "@sha256:" in image or (":" in image and not image.endswith(":latest")), where


def test_long_running_containers_have_three_probes(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for where, metadata, spec in pods(rendered):
        # Workers of a group open no port: their leader's probes answer for all.
        if "restartPolicy" not in spec and metadata["labels"].get(GROUP, "0") == "0":
            for container in spec["containers"]:
                assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), where


def test_every_port_names_its_protocol(rendered: dict[str, list[dict[str, Any]]]) -> None:
    def ports(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "ports":
                    yield from value
                else:
                    yield from ports(value)
        elif isinstance(node, list):
            for each in node:
                yield from ports(each)

    for name, things in rendered.items():
        found = list(ports(things))
        assert found, name
        assert all(port["protocol"] in ("TCP", "UDP") for port in found), name


def test_network_is_denied_by_default_and_every_pod_has_its_policy(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    for name, things in rendered.items():
        policies = [each["spec"] for each in things if each["kind"] == "NetworkPolicy"]
        if name == "ci/open-network-values.yaml":
            assert not policies
            continue
        denying = [each for each in policies if not each.get("ingress") and not each.get("egress")]
        assert len(denying) == 1, name
        assert denying[0]["policyTypes"] == ["Ingress", "Egress"]
        for where, metadata, _ in pods({name: things}):
            own = [
                each
                for each in policies
                if each["podSelector"]["matchLabels"].items() <= metadata["labels"].items()
            ]
            assert len(own) == 2, where


def test_generators_cannot_write_checkpoints_that_others_read(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    for where, metadata, spec in pods(rendered):
        copies = {each["name"] for each in spec.get("volumes", []) if "emptyDir" in each}
        for container in containers(spec):
            for mount in container.get("volumeMounts", []):
                if mount["name"] == "checkpoints" and mount["name"] not in copies:
                    component = metadata["labels"]["app.kubernetes.io/component"]
                    assert mount.get("readOnly", False) is (component != "learner"), where


def test_selectors_match_the_pods_and_only_those(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for name, things in rendered.items():
        labels = [(where, metadata["labels"]) for where, metadata, _ in pods({name: things})]
        for thing in things:
            if thing["kind"] not in ("Service", "PodDisruptionBudget", "StatefulSet", "Deployment"):
                continue
            selector = thing["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            matched = {where for where, each in labels if wanted.items() <= each.items()}
            assert len(matched) == 1, f"{name}: {thing['kind']} {thing['metadata']['name']} matches {matched}"


def test_checkpoints_outlive_the_release(rendered: dict[str, list[dict[str, Any]]]) -> None:
    claims = [
        each for things in rendered.values() for each in things if each["kind"] == "PersistentVolumeClaim"
    ]
    assert claims
    assert all(each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for each in claims)


@pytest.mark.parametrize("kind", ["Secret", "ConfigMap"])
def test_no_rendering_holds_a_password(kind: str) -> None:
    for path in (CHART / "examples").glob("*/rendered.yaml"):
        text = path.read_text()
        assert text.count("-password: ") == text.count("-password: GENERATED"), path


def test_quantities_are_text_for_server_side_apply_of_older_clusters(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    for where, _, spec in pods(rendered):
        for container in containers(spec):
            for amounts in container["resources"].values():
                assert all(isinstance(amount, str) for amount in amounts.values()), (where, amounts)
