"""Addresses of pods, and Services' names turned into them.

Every pod has a loopback address of its own, so pods listen on the ports that the chart gives them although
all share one machine. A name is resolved where it is written (arguments, environment, mounted files), since
the processes share this machine's name service.
"""

import itertools
import random
import re
from typing import Any

from tests.pods.manifests import ChartFault, Manifests, Object, container_port, matches

_ADDRESSED = re.compile(r"(?<=://)(?:[^/@\s\"']*@)?(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*)(?::(?P<port>\d+))?")


class Network:
    """Hands out addresses and knows who answers under which name."""

    def __init__(self, manifests: Manifests, *, namespace: str) -> None:
        # A second run on this machine at the same time should not meet this one.
        self._prefix = f"127.{random.randrange(20, 250)}.{random.randrange(250)}"
        self._numbers = itertools.count(1)
        self._namespace = namespace
        self._workloads = manifests.workloads
        self._services = {each["metadata"]["name"]: each["spec"] for each in manifests.of_kind("Service")}
        self._first = {each["metadata"]["name"]: self.next_address() for each in self._workloads}
        for name in self._services:
            self._pod_behind(name)

    def next_address(self) -> str:
        """An address that no pod has."""
        return f"{self._prefix}.{next(self._numbers)}"

    def address_of_first(self, workload: str) -> str:
        """Where the first pod of a workload is, and the one that replaces it: as behind a Service."""
        return self._first[workload]

    def _pod_behind(self, service: str) -> Object:
        """The workload whose pods a Service chooses. One, with one pod, is all that is resolved here."""
        selector = self._services[service].get("selector") or {}
        chosen = [
            each
            for each in self._workloads
            if matches(selector, each["spec"]["template"]["metadata"].get("labels", {}))
        ]
        if len(chosen) != 1:
            names = [each["metadata"]["name"] for each in chosen]
            raise ChartFault(
                f"the Service {service} chooses pods of {names or 'no workload'}: one was expected"
            )
        return chosen[0]

    def resolve(self, service: str, port: int) -> str:
        """address:port that a Service's port leads to."""
        workload, spec = self._pod_behind(service), self._services[service]
        offered = {int(each["port"]): each for each in spec["ports"]}
        if port not in offered:
            raise ChartFault(
                f"{service}:{port} is asked for, and the Service {service} has {sorted(offered)}"
            )
        target = offered[port].get("targetPort", port)
        [container] = workload["spec"]["template"]["spec"]["containers"]
        number = container_port(container, target, wanted_by=f"the Service {service}")
        if spec.get("clusterIP") == "None" and number != port:
            raise ChartFault(
                f"the Service {service} is headless: {port} reaches the pod as it is, not {target}"
            )
        return f"{self._first[workload['metadata']['name']]}:{number}"

    @property
    def pattern(self) -> str:
        """A regular expression of `service:port` with the groups `service` and `port`."""
        names = "|".join(sorted(map(re.escape, self._services), key=len, reverse=True)) or "(?!)"
        domain = rf"(?:\.{re.escape(self._namespace)}(?:\.svc(?:\.cluster\.local)?)?)?"
        return rf"(?<![\w.-])(?P<service>{names}){domain}:(?P<port>\d+)"

    def refuse_strangers(self, text: str, *, where: str) -> None:
        """Raises when a URL of the text, already resolved, names a host that nobody answers for."""
        for found in _ADDRESSED.finditer(text):
            host: Any = found["host"]
            if not host.startswith("127.") and host != "localhost":
                raise ChartFault(f"{where} names the host {host}, and no Service is called that")
