"""python -m deploy.cluster.inside DIRECTORY IMAGES: the cluster and what is tried on it.

Started by the package's command in namespaces of its own, where it is the first process: when it ends, the
kernel ends every process of the cluster and forgets its network and mounts.
"""

import sys
import time
from pathlib import Path

import yaml
from asympo.testing import hub
from asympo.testing.tiny_model import write_tiny_model

from deploy.chart import rendering
from deploy.cluster.names import NameServer
from deploy.cluster.one_node import GATEWAY, OneNode
from deploy.cluster.processes import ClusterFault
from deploy.cluster.scenario import Release, Scenario
from deploy.pods.scenario import Report

ROOT = rendering.ROOT
CACHE = ROOT / ".cache/k8s"
LAPTOP = ROOT / "helm/asympo/examples/laptop-cpu/values.yaml"
OVERLAYS = (ROOT / "deploy/pods/simulated-values.yaml", ROOT / "deploy/cluster/values.yaml")


def main() -> int:
    begun = time.monotonic()
    directory, images = Path(sys.argv[1]), Path(sys.argv[2])

    def tell(text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - begun:5.1f} s  {text}\n")
        sys.stdout.flush()

    report = Report(tell=tell)
    node = OneNode(cache=CACHE, directory=directory, kubectl=rendering.TOOLS / "bin/kubectl")
    try:
        _run(node, directory, images, report)
    except ClusterFault as fault:
        report.claim("the cluster holds", str(fault))
    finally:
        node.processes.stop()
    failed = report.failed
    sys.stdout.write(f"\n{len(failed)} claims failed\n" if failed else "\nAll claims hold.\n")
    return 1 if failed else 0


def _run(node: OneNode, directory: Path, images: Path, report: Report) -> None:
    write_tiny_model(directory / "hub")
    version = node.start(images).removeprefix("v")
    report.claim(
        f"a node of Kubernetes v{version} is ready: kubelet, containerd, runc and kube-proxy, none faked"
    )
    NameServer(GATEWAY, addresses_of=node.addresses_of)
    wanted = yaml.safe_load(LAPTOP.read_text())["model"]["download"]
    volumes = node.add_volume("checkpoints", size="10Gi")
    node.add_volume("broker", size="2Gi")
    model = hub.serve(
        directory / "hub", repository=wanted["repository"], revision=wanted["revision"], address=GATEWAY
    )
    with model as url:
        overlay = directory / "hub.yaml"
        environment = [{"name": "HF_HUB_DISABLE_XET", "value": "1"}, {"name": "HF_ENDPOINT", "value": url}]
        overlay.write_text(yaml.safe_dump({"learner": {"extraEnv": environment}}))
        release = Release(node=node, values=[LAPTOP, *OVERLAYS, overlay])
        Scenario(node=node, release=release, report=report, checkpoints=volumes).run()


if __name__ == "__main__":
    sys.exit(main())
