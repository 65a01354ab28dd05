"""python -m tests.cluster [--values FILE ...] [--before REVISION] [--home-built [--keep DIRECTORY]]."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.cluster.charts import write_charts
from tests.cluster.cluster import Cluster, ClusterFault, Report
from tests.cluster.home_built import machine
from tests.cluster.scenario import NAMESPACE, try_chart


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--values", type=Path, action="append", default=[], help="on top: images, storage")
    parser.add_argument("--namespace", default=NAMESPACE, help="made, and deleted at the end")
    parser.add_argument("--before", default="", help="git revision of the release before; the recorded one")
    parser.add_argument("--home-built", action="store_true", help="on the node that make k8s-binaries built")
    parser.add_argument("--keep", type=Path, help="leave the home-built node's logs in this new directory")
    arguments = parser.parse_args()
    if arguments.home_built:
        return machine.run(arguments.keep, "tests.cluster.home_built")
    cluster = Cluster(namespace=arguments.namespace)
    try:
        context = cluster.run("kubectl", "config", "current-context").strip()
        version = cluster.run("kubectl", "version").splitlines()[-1].strip()
    except (ClusterFault, FileNotFoundError) as fault:
        sys.stderr.write(f"kubectl reaches no cluster ({fault}): choose a context, or give --home-built\n")
        return 2
    report = Report()
    report.tell(f"context {context}, namespace {arguments.namespace}: {version}")
    with tempfile.TemporaryDirectory() as directory:
        charts = write_charts(Path(directory), revision=arguments.before)
        try_chart(cluster, report, charts=charts, values=arguments.values)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
