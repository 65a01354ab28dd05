"""python -m tests.cluster.home_built DIRECTORY: the node, and the chart tried on it.

The first process of its namespaces: when it ends, the kernel ends all others and forgets network and mounts.
"""

import sys
from pathlib import Path

import yaml
from asympo.testing import hub
from asympo.testing.tiny_model import write_tiny_model

from deploy.chart import rendering
from tests.cluster.charts import write_charts
from tests.cluster.cluster import ClusterFault, Report
from tests.cluster.home_built.machine import CACHE, broker_image
from tests.cluster.home_built.names import NameServer
from tests.cluster.home_built.node import GATEWAY, OneNode
from tests.cluster.scenario import LAPTOP, NAMESPACE, ONE_IMAGE, try_chart


def main() -> int:
    directory = Path(sys.argv[1])
    report = Report()
    node = OneNode(cache=CACHE, directory=directory, kubectl=rendering.TOOLS / "bin/kubectl")
    try:
        version = node.start(broker_image())
        report.claim(
            f"a node of Kubernetes v{version} is ready: kubelet, containerd, runc and kube-proxy, none faked"
        )
        NameServer(GATEWAY, addresses_of=node.addresses_of)
        node.add_volume("checkpoints", size="10Gi")
        node.add_volume("broker", size="2Gi")
        wanted = yaml.safe_load(LAPTOP.read_text())["model"]["download"]
        model = write_tiny_model(directory / "hub")
        place = {"repository": wanted["repository"], "revision": wanted["revision"], "address": GATEWAY}
        with hub.serve(model, **place) as url:
            environment = [
                {"name": "HF_HUB_DISABLE_XET", "value": "1"},
                {"name": "HF_ENDPOINT", "value": url},
            ]
            overlay = directory / "hub.yaml"
            overlay.write_text(yaml.safe_dump({"learner": {"extraEnv": environment}}))
            # The node is older than the chart promises to work on.
            charts = write_charts(directory / "charts", on_any_version=True)
            try_chart(node.cluster(NAMESPACE), report, charts=charts, values=[ONE_IMAGE, overlay])
    except ClusterFault as fault:
        report.claim("the cluster holds", str(fault))
    finally:
        node.stop()
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
