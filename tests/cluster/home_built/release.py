"""A healthy release on the node, in which something is made to fail for a recording.

python -m tests.cluster.home_built.release NAME DIRECTORY: makes one, as the first process of its namespaces.
"""

import sys
import time
from pathlib import Path

from deploy.chart.rendering import RELEASE
from tests.cluster.home_built import kube_state
from tests.cluster.home_built.node import GATEWAY, KUBELET_PORT
from tests.cluster.home_built.prepared import Prepared, prepared_node
from tests.cluster.scenario import LAPTOP, OVERLAY
from tests.observability import record
from tests.observability.failures import pods

_BROKER = "statefulset/asympo-redis"
_AS_OPERATOR = (
    'redis-cli --user operator --pass "$(cat /etc/asympo/passwords/operator-password)" --no-auth-warning'
)


class Release:
    """What Prometheus sees of its pods and volumes."""

    def __init__(self, ready: Prepared) -> None:
        self._chart, self._cluster = str(ready.charts.now), ready.node.cluster(pods.NAMESPACE)
        self._cluster.run("kubectl", "create", "namespace", pods.NAMESPACE)
        values = [f"--values={path}" for path in (LAPTOP, OVERLAY, *ready.values)]
        # Of which a memory file system under its volume is a part.
        values.append("--set=redis.embedded.memoryMiB=1024")
        self._cluster.helm("install", RELEASE, self._chart, *values, "--wait", "--timeout=8m")
        self.labels: dict[str, str] = {}
        self.targets = [kube_state.serve(ready.node, pods.NAMESPACE), f"{GATEWAY}:{KUBELET_PORT}"]
        self.begun = time.time()
        self.healthy_seconds = 0.0

    def stop(self) -> None:
        """It ends with its node."""

    def goes_on(self, seconds: float) -> None:
        """So much of the recording passes."""
        time.sleep(seconds)

    def breaks(self) -> None:
        """Until now all was well."""
        self.healthy_seconds = time.time() - self.begun

    def upgrade(self, value: str) -> None:
        """By somebody who does not wait for the pods."""
        changed = ("--reset-then-reuse-values", f"--set={value}")
        self._cluster.helm("upgrade", RELEASE, self._chart, *changed)

    def restart(self, pod: str) -> None:
        """Its container ends once, as it is told, and is started again."""
        self._cluster.kubectl("exec", pod, "--", "sh", "-c", "kill 1")

    def until_ended(self, pod: str, times: int) -> None:
        """So often that one of its containers has been started again as often."""

        def has_ended() -> bool:
            status = self._cluster.get("pod", pod)["status"]
            found = [*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])]
            return any(each["restartCount"] >= times for each in found)

        self._cluster.until(f"{times} restarts of {pod}", has_ended)

    def fill_broker(self, megabytes: int) -> None:
        """With the log of another run, of which nothing is trimmed; two megabytes a second."""
        append = f"{_AS_OPERATOR} -x XADD 'asympo:{{other}}:log' '*' record"
        one = f"head -c 1000000 /dev/urandom | {append} >/dev/null && sleep 0.5"
        script = f"set -e; for i in $(seq {megabytes}); do {one}; done"
        self._cluster.kubectl("exec", _BROKER, "--", "sh", "-c", script, seconds=600)


def main() -> None:
    name, directory = sys.argv[1:]
    with prepared_node(Path(directory), broker_room=pods.BROKER_ROOM) as ready:
        record.keep(record.record(name, pods.FAILURES[name], lambda _: Release(ready)))


if __name__ == "__main__":
    main()
