"""Pods, and what keeps the right number of them: a StatefulSet's and a Deployment's controller in one."""

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.pods.container import Container
from tests.pods.images import ROOT, put_programs
from tests.pods.layout import Layout, PodIdentity
from tests.pods.manifests import ChartFault, Manifests, Object
from tests.pods.network import Network

_INIT_SECONDS = 120.0
_PASSED_ON = ("LANG", "OMP_NUM_THREADS")


class Pod:
    """One pod of a workload: init containers in order, then its containers."""

    def __init__(
        self,
        *,
        identity: PodIdentity,
        spec: Object,
        manifests: Manifests,
        network: Network,
        claim_templates: Mapping[str, Object],
        tell: Callable[[str], None],
    ) -> None:
        self.identity = identity
        self._grace_seconds = float(spec.get("terminationGracePeriodSeconds", 30))
        self._tell = lambda text: tell(f"{identity.name}: {text}")
        programs = identity.directory / "programs"
        put_programs(programs, address=identity.address)

        def build(container: Object) -> Container:
            layout = Layout(
                pod=identity,
                spec=spec,
                container=container,
                manifests=manifests,
                network=network,
                claim_templates=claim_templates,
            )
            return Container(
                container=container,
                layout=layout,
                address=identity.address,
                path=programs,
                log=identity.directory / f"{container['name']}.log",
                base_environment=_base_environment(identity.address),
                tell=self._tell,
            )

        self._init: list[Container] = [build(each) for each in spec.get("initContainers", [])]
        self.containers = [build(each) for each in spec["containers"]]
        self._is_stopping = threading.Event()

    @property
    def is_ready(self) -> bool:
        """Whether every container's readiness probe succeeds."""
        return all(each.is_ready for each in self.containers)

    @property
    def init_codes(self) -> dict[str, list[int]]:
        """How init containers ended."""
        return {each.name: each.exit_codes for each in self._init}

    def start(self) -> None:
        """Runs it in the background."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for each in self._init:
            while not self._is_stopping.is_set() and each.run_to_end(seconds=_INIT_SECONDS) != 0:
                self._tell(f"init container {each.name} failed:\n{each.last_lines()}")  # type: ignore[no-untyped-call]
                self._is_stopping.wait(2.0)
        if not self._is_stopping.is_set():
            for each in self.containers:
                each.start()

    def stop(self) -> str:
        """Asks it to end and waits as long as its grace period; says what did not end well."""
        self._is_stopping.set()
        problems = [each.stop(self._grace_seconds) for each in self.containers]
        self.kill()
        return ", ".join(f"{self.identity.name}: {each}" for each in problems if each)

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        self._is_stopping.set()
        for each in [*self._init, *self.containers]:
            each.kill()


class Node:
    """A machine that runs the pods of one release."""

    def __init__(
        self, *, manifests: Manifests, directory: Path, namespace: str, tell: Callable[[str], None]
    ) -> None:
        self._directory = directory
        self._namespace = namespace
        self._tell = tell
        self._numbers = itertools.count()
        self._manifests = manifests
        self._network = Network(manifests, namespace=namespace)
        self.pods: dict[str, list[Pod]] = {each["metadata"]["name"]: [] for each in manifests.workloads}

    def apply(self, manifests: Manifests) -> str:
        """Brings every workload to its number of replicas; says what did not end well."""
        self._manifests = manifests
        surplus = []
        for workload in manifests.workloads:
            name, wanted = workload["metadata"]["name"], int(workload["spec"].get("replicas", 1))
            pods = self.pods[name]
            while len(pods) < wanted:
                pods.append(self._started(workload, ordinal=len(pods)))
            surplus += [pods.pop() for _ in range(len(pods) - wanted)]
        return _stop(surplus)

    def replace(self, workload_name: str) -> str:
        """Deletes the first pod of a workload and starts another in its place; says what did not end well."""
        old = self.pods[workload_name].pop(0)
        problem = old.stop()
        [workload] = [e for e in self._manifests.workloads if e["metadata"]["name"] == workload_name]
        self.pods[workload_name].insert(0, self._started(workload, ordinal=0))
        return problem

    def _started(self, workload: Object, *, ordinal: int) -> Pod:
        name = workload["metadata"]["name"]
        is_ordered = workload["kind"] == "StatefulSet"
        pod_name = f"{name}-{ordinal}" if is_ordered else f"{name}-{next(self._numbers)}"
        template = workload["spec"]["template"]
        self._check_selector(workload)
        claims = {each["metadata"]["name"]: each for each in workload["spec"].get("volumeClaimTemplates", [])}
        address = self._network.address_of_first(name) if ordinal == 0 else ""
        pod = self.pod(pod_name, template, claims, address=address)
        pod.start()
        return pod

    def pod(self, name: str, template: Object, claims: Mapping[str, Object], *, address: str = "") -> Pod:
        """A pod of this template, not started."""
        directory = self._directory / "pods" / name
        shutil.rmtree(directory / "volumes", ignore_errors=True)
        identity = PodIdentity(
            name=name,
            namespace=self._namespace,
            address=address or self._network.next_address(),
            directory=directory,
            claims=self._directory / "claims",
            labels=template["metadata"].get("labels", {}),
        )
        return Pod(
            identity=identity,
            spec=template["spec"],
            manifests=self._manifests,
            network=self._network,
            claim_templates=claims,
            tell=self._tell,
        )

    @staticmethod
    def _check_selector(workload: Object) -> None:
        selector = workload["spec"]["selector"]["matchLabels"]
        labels = workload["spec"]["template"]["metadata"].get("labels", {})
        if not selector.items() <= labels.items():
            raise ChartFault(
                f"{workload['kind']} {workload['metadata']['name']} does not select its own pods"
            )

    def stop(self, *, last: str) -> str:
        """Stops every pod, those of the workload `last` after all others; says what did not end well."""
        first = [pod for name, pods in self.pods.items() if name != last for pod in pods]
        return _stop(first) or _stop(self.pods[last])

    def kill(self) -> None:
        """Leaves no process behind."""
        for pods in self.pods.values():
            for pod in pods:
                pod.kill()


def _stop(pods: Sequence[Pod]) -> str:
    with ThreadPoolExecutor(max(1, len(pods))) as pool:
        return "; ".join(problem for problem in pool.map(Pod.stop, pods) if problem)


def _base_environment(address: str) -> dict[str, str]:
    """What this machine needs beside what the container gets.

    The control RPCs listen on a pod's own loopback; here that is the pod's address.
    """
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    passed["PYTHONPATH"] = str(ROOT / "services")
    return passed | {f"ASYMPO_{name}_GRPC_HOST": address for name in ("LEARNER", "GENERATOR")}
