"""python -m tests.cluster.home_built DIRECTORY: the node, and the chart tried on it.

The first process of its namespaces: when it ends, the kernel ends all others and forgets network and mounts.
"""

import sys
from pathlib import Path

from tests.cluster.cluster import ClusterFault, Report
from tests.cluster.home_built.prepared import prepared_node
from tests.cluster.scenario import NAMESPACE, try_chart


def main() -> int:
    report = Report()
    try:
        with prepared_node(Path(sys.argv[1])) as ready:
            report.claim(
                f"a node of Kubernetes v{ready.version} is ready: "
                "kubelet, containerd, runc and kube-proxy, none faked"
            )
            cluster = ready.node.cluster(NAMESPACE)
            try_chart(cluster, report, charts=ready.charts, values=ready.values)
    except ClusterFault as fault:
        report.claim("the cluster holds", str(fault))
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
