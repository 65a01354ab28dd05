"""The rendered pods run as processes; and what is wrong with a chart is found by running it."""

import copy
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from asympo.run.prepare.machine import FEW_KERNELS, KEEP_MEMORY, NO_SPINNING

from deploy.chart import rendering
from tests.conftest import require
from tests.helm.conftest import CHART, ROOT
from tests.pods.images import missing_programs
from tests.pods.manifests import ChartFault, Manifests, broker_users
from tests.pods.node import Node

LAPTOP = CHART / "examples/laptop-cpu/values.yaml"
LEARNER, BROKER = "asympo-learner", "asympo-redis"


@pytest.fixture(scope="module")
def laptop(chart_tools: Path) -> list[dict[str, Any]]:
    return [*rendering.objects(rendering.template(CHART, values=[LAPTOP]).stdout), broker_users()]


def find(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    return next(each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name)


def container(objects: list[dict[str, Any]], name: str = LEARNER) -> dict[str, Any]:
    return find(objects, "StatefulSet", name)["spec"]["template"]["spec"]["containers"][0]


def lay_out(objects: list[dict[str, Any]], directory: Path) -> dict[str, Mapping[str, str]]:
    """Every pod of the rendering laid out, none started: environments by workload."""
    manifests = Manifests(objects=tuple(objects))
    node = Node(manifests=manifests, directory=directory, namespace="training", tell=print)
    found: dict[str, Mapping[str, str]] = {}
    for workload in manifests.workloads:
        claims = {each["metadata"]["name"]: each for each in workload["spec"].get("volumeClaimTemplates", [])}
        pod = node.pod(workload["metadata"]["name"] + "-0", workload["spec"]["template"], claims)
        found[workload["metadata"]["name"]] = pod.containers[0].environment
    return found


@pytest.mark.timeout(300)
def test_pods_learn_scale_and_end_as_their_manifests_say(tmp_path: Path) -> None:
    require(not missing_programs(), ", ".join(missing_programs()))
    command = [sys.executable, "-m", "tests.pods", "--keep", str(tmp_path / "pods")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(" pass ") == 10


def test_settings_and_passwords_reach_the_containers(laptop: list[dict[str, Any]], tmp_path: Path) -> None:
    environments = lay_out(laptop, tmp_path)
    learner, generator = environments["asympo-learner"], environments["asympo-generator"]
    assert learner["REDIS_USERNAME"] == "learner"
    assert learner["REDIS_PASSWORD"] != generator["REDIS_PASSWORD"]
    assert learner["HOME"] == f"{tmp_path}/pods/asympo-learner-0/volumes/temporary"
    [text] = [path.read_text() for path in tmp_path.glob("pods/*/learner/*/learner.toml")]
    assert f'checkpoint_root = "{tmp_path}/claims/asympo-checkpoints"' in text
    assert "redis://127." in text
    assert "0.0.0.0" not in text


def test_learner_without_a_gpu_computes_as_that_of_asympo_run(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    wanted = {"name": "MALLOC_MMAP_MAX_", "value": "0"}
    assert wanted not in container(rendered["examples/one-gpu/values.yaml"])["env"]
    for name in ("examples/laptop-cpu/values.yaml", "ci/cpu-ranks-values.yaml"):
        found = {each["name"]: each.get("value") for each in container(rendered[name])["env"]}
        assert (KEEP_MEMORY | FEW_KERNELS | NO_SPINNING).items() <= found.items()


def drop(kind: str, name: str) -> Callable[[list[dict[str, Any]]], None]:
    return lambda objects: objects.remove(find(objects, kind, name))


def settings(change: Callable[[str], str]) -> Callable[[list[dict[str, Any]]], None]:
    def apply(objects: list[dict[str, Any]]) -> None:
        data = find(objects, "ConfigMap", "asympo-learner-settings")["data"]
        data["learner.toml"] = change(data["learner.toml"])

    return apply


FAULTS: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "no ConfigMap": (drop("ConfigMap", "asympo-learner-settings"), "the ConfigMap asympo-learner-settings"),
    "no Secret": (drop("Secret", "asympo-broker-users"), "the Secret asympo-broker-users, which is not"),
    "no claim": (drop("PersistentVolumeClaim", "asympo-checkpoints"), "PersistentVolumeClaim"),
    "no Service": (drop("Service", BROKER), "names the host asympo-redis, and no Service is called that"),
    "key": (
        lambda things: find(things, "Secret", "asympo-broker-users")["data"].pop("learner-password"),
        "wants the key learner-password",
    ),
    "volume": (
        lambda things: container(things)["volumeMounts"].append({"name": "more", "mountPath": "/more"}),
        "mounts the volume more, which the pod does not have",
    ),
    "path": (
        lambda things: container(things).update(args=["learner", "--config", "/etc/elsewhere.toml"]),
        "/etc/elsewhere.toml lies in no volume",
    ),
    "path in the settings": (
        settings(lambda text: text.replace('"/checkpoints"', '"/data/checkpoints"')),
        "value in learner.toml /data/checkpoints lies in no volume",
    ),
    "port of the broker": (
        settings(lambda text: text.replace("asympo-redis:6379", "asympo-redis:6380")),
        "asympo-redis:6380 is asked for",
    ),
    "port of a probe": (
        lambda things: container(things)["livenessProbe"]["httpGet"].update(port="page"),
        "names the port page, which the container learner does not have",
    ),
    "target of a Service": (
        lambda things: find(things, "Service", BROKER)["spec"]["ports"][0].update(targetPort="valkey"),
        "the Service asympo-redis names the port valkey",
    ),
    "selector of a Service": (
        lambda things: find(things, "Service", BROKER)["spec"]["selector"].update(tier="broker"),
        "the Service asympo-redis chooses pods of no workload",
    ),
    "kind of a probe": (
        lambda things: container(things, BROKER).update(readinessProbe={"grpc": {"port": 1}}),
        "of no kind known here",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_a_chart_is_found_before_anything_starts(
    fault: str, laptop: list[dict[str, Any]], tmp_path: Path
) -> None:
    objects = copy.deepcopy(laptop)
    change, sentence = FAULTS[fault]
    change(objects)
    with pytest.raises(ChartFault) as found:
        lay_out(objects, tmp_path)
    assert sentence in str(found.value)


def test_container_whose_startup_probe_fails_is_restarted_and_never_ready(
    laptop: list[dict[str, Any]], tmp_path: Path
) -> None:
    objects = copy.deepcopy(laptop)
    broker = container(objects, BROKER)
    broker["startupProbe"] = {"exec": {"command": ["false"]}, "periodSeconds": 0.1, "failureThreshold": 3}
    objects = [each for each in objects if each["metadata"]["name"].startswith((BROKER, "asympo-broker"))]
    told: list[str] = []
    manifests = Manifests(objects=tuple(objects))

    node = Node(manifests=manifests, directory=tmp_path, namespace="training", tell=told.append)
    try:
        node.apply(manifests)
        [pod] = node.pods[BROKER]
        while pod.containers[0].num_restarts == 0:
            time.sleep(0.05)
        assert (pod.containers[0].num_restarts, pod.is_ready) == (1, False)
    finally:
        node.kill()
    assert any("its startup probe failed" in each for each in told)


def test_claims_of_the_guide_are_those_that_a_run_makes() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text().partition("$ make pods\n")[2].partition("```")[0]
    source = "".join(path.read_text() for path in (ROOT / "tests/pods").glob("*.py"))
    claims = re.findall(r"^ *[\d.]+ s  pass  (\D+?)(?:[:\d]|$)", page, re.MULTILINE)
    assert len(claims) == 10
    assert [claim for claim in claims if claim not in source] == []
