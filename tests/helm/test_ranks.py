"""A learner of several ranks: torchrun's flags, who answers, who may talk to whom."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.chart import rendering
from tests.helm.conftest import CHART

SEVERAL = {
    "examples/fleet/values.yaml": (1, 8),
    "ci/cpu-ranks-values.yaml": (1, 2),
    "examples/multi-node-learner/values.yaml": (2, 8),
    "ci/leader-worker-set-values.yaml": (4, 8),
}


def learner_pods(things: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for thing in things:
        if not thing["metadata"]["name"].startswith("asympo-learner"):
            continue
        if thing["kind"] == "StatefulSet":
            yield thing["spec"]["template"]["spec"]
        elif thing["kind"] == "LeaderWorkerSet":
            templates = thing["spec"]["leaderWorkerTemplate"]
            yield from (templates[f"{role}Template"]["spec"] for role in ("leader", "worker"))


def flags(container: dict[str, Any]) -> dict[str, str]:
    """torchrun's own flags."""
    own = container["args"][: container["args"].index("-m")]
    own = [each for each in own if each != "--standalone"]
    return dict(zip(own[::2], own[1::2], strict=True))


def test_one_rank_starts_without_torchrun(rendered: dict[str, list[dict[str, Any]]]) -> None:
    [pod] = learner_pods(rendered["examples/two-gpus/values.yaml"])
    assert "command" not in pod["containers"][0]


@pytest.mark.parametrize("name", SEVERAL)
def test_torchrun_starts_as_many_ranks_as_there_are_gpus(
    rendered: dict[str, list[dict[str, Any]]], name: str
) -> None:
    nodes, ranks = SEVERAL[name]
    for pod in learner_pods(rendered[name]):
        [container] = pod["containers"]
        found = flags(container)
        assert found["--nproc-per-node"] == str(ranks)
        assert found.get("--nnodes", "1") == str(nodes)
        assert int(found["--shutdown-timeout"]) < pod["terminationGracePeriodSeconds"]
        assert container["args"][-4:-1] == ["asympo.learner", "--", "--config"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", ranks)
        assert int(gpus) == ranks


def test_ranks_of_several_nodes_meet_at_the_first_pod(rendered: dict[str, list[dict[str, Any]]]) -> None:
    things = rendered["examples/multi-node-learner/values.yaml"]
    [pod] = learner_pods(things)
    [container] = pod["containers"]
    address = flags(container)["--master-addr"]
    workload = next(
        each for each in things if each["kind"] == "StatefulSet" and "learner" in str(each["metadata"])
    )
    assert address == f"{workload['metadata']['name']}-0.{workload['spec']['serviceName']}"
    assert workload["spec"]["podManagementPolicy"] == "Parallel"
    service = next(e for e in things if e["metadata"]["name"] == workload["spec"]["serviceName"])
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert flags(container)["--master-port"] in {str(port["port"]) for port in service["spec"]["ports"]}
    # The shell's part of the command, with `torchrun` replaced by something that prints its arguments.
    script = container["command"][4].replace("exec torchrun", "exec echo")
    command = ["sh", "-c", script, "torchrun", *container["args"][:2]]
    result = subprocess.run(
        command, env={"POD_NAME": "asympo-learner-11"}, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["--node-rank", "11", "--master-addr", address]


@pytest.mark.parametrize("name", [name for name, (nodes, _) in SEVERAL.items() if nodes > 1])
def test_page_is_that_of_the_first_rank_and_ranks_may_talk(
    rendered: dict[str, list[dict[str, Any]]], name: str
) -> None:
    things = rendered[name]
    service = next(e for e in things if e["kind"] == "Service" and e["metadata"]["name"] == "asympo-learner")
    assert {"asympo-learner-0", "0"} & set(service["spec"]["selector"].values())
    policy = next(
        each
        for each in things
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "asympo-learner"
    )
    learner = {"podSelector": {"matchLabels": policy["spec"]["podSelector"]["matchLabels"]}}
    assert {"from": [learner]} in policy["spec"]["ingress"]
    assert {"to": [learner]} in policy["spec"]["egress"]


def test_group_is_not_called_as_a_service_of_ours(rendered: dict[str, list[dict[str, Any]]]) -> None:
    """The ranks meet by a headless Service of that name, which LeaderWorkerSet makes unless one is there."""
    things = rendered["ci/leader-worker-set-values.yaml"]
    [group] = [e["metadata"]["name"] for e in things if e["kind"] == "LeaderWorkerSet"]
    assert group not in {e["metadata"]["name"] for e in things if e["kind"] == "Service"}
    [pattern] = set(re.findall(r'statefulset=~"([^"]+)"', Path(CHART / "rules/release.yaml").read_text()))
    names = re.compile(pattern.replace("FULLNAME", "asympo"))
    assert names.fullmatch(group)
    assert names.fullmatch("asympo-learner")


def test_group_of_a_long_release_leaves_room_for_what_is_appended() -> None:
    """Its workers have the label controller-revision-hash, GROUP-0-HASH of at most 63 characters."""
    values = [CHART / "ci/leader-worker-set-values.yaml"]
    objects = rendering.objects(rendering.template(CHART, values=values, release="r" * 51).stdout)
    [group] = [each["metadata"]["name"] for each in objects if each["kind"] == "LeaderWorkerSet"]
    assert len(f"{group}-0-{'h' * 10}") <= 63


def test_probe_asks_only_the_first_pod(rendered: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    things = rendered["examples/multi-node-learner/values.yaml"]
    data = next(e for e in things if e["metadata"]["name"] == "asympo-learner-settings")["data"]
    [pod] = learner_pods(things)
    for kind, path in (("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz")):
        command = pod["containers"][0][f"{kind}Probe"]["exec"]["command"]
        assert command == ["sh", "/etc/asympo/settings/probe_learner.sh", path]
    script = tmp_path / "probe_learner.sh"
    script.write_text(data["probe_learner.sh"].replace("8080", "1"))
    codes = {}
    for pod_name in ("asympo-learner-0", "asympo-learner-10"):
        environment = {"POD_NAME": pod_name, "PATH": "/usr/local/bin:/usr/bin:/bin"}
        result = subprocess.run(["sh", script, "/livez"], env=environment, capture_output=True, check=False)
        codes[pod_name] = result.returncode
    # Nobody listens here: the first pod is not alive, the other does not ask.
    assert codes["asympo-learner-0"] != 0
    assert codes["asympo-learner-10"] == 0


def test_notes_count_the_ranks() -> None:
    values = CHART / "examples/multi-node-learner/values.yaml"
    command: list[str | Path] = [
        rendering.TOOLS / "bin/helm4",
        "install",
        "--dry-run=client",
        "asympo",
        CHART,
        "--values",
        values,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "one learner of 16 ranks and 16 generators" in result.stdout
