"""The rendered objects, and what they say about pods."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


class ChartFault(Exception):
    """The rendered objects contradict each other, or ask for what is not there."""


@dataclass(frozen=True, kw_only=True)
class Manifests:
    """All objects of one rendering; every lookup that fails is a fault of the chart."""

    objects: tuple[Object, ...]

    def one(self, kind: str, name: str, *, wanted_by: str) -> Object:
        """The object of this kind and name."""
        for each in self.objects:
            if each["kind"] == kind and each["metadata"]["name"] == name:
                return each
        raise ChartFault(f"{wanted_by} names the {kind} {name}, which is not rendered")

    def of_kind(self, *kinds: str) -> Iterator[Object]:
        """Objects of these kinds, in the order rendered."""
        yield from (each for each in self.objects if each["kind"] in kinds)

    @property
    def workloads(self) -> list[Object]:
        """What keeps pods alive."""
        return list(self.of_kind("StatefulSet", "Deployment"))

    @property
    def tests(self) -> list[Object]:
        """Pods of `helm test`."""
        hooks = "helm.sh/hook"
        return [
            each
            for each in self.of_kind("Pod")
            if each["metadata"].get("annotations", {}).get(hooks) == "test"
        ]

    def files(self, kind: str, name: str, *, wanted_by: str) -> dict[str, str]:
        """Keys and texts of a ConfigMap or a Secret."""
        thing = self.one(kind, name, wanted_by=wanted_by)
        if kind == "ConfigMap":
            return dict(thing.get("data") or {})
        data = {key: base64.b64decode(value).decode() for key, value in (thing.get("data") or {}).items()}
        return data | (thing.get("stringData") or {})

    def key(self, kind: str, name: str, key: str, *, wanted_by: str) -> str:
        """One text of a ConfigMap or a Secret."""
        files = self.files(kind, name, wanted_by=wanted_by)
        if key not in files:
            raise ChartFault(
                f"{wanted_by} wants the key {key} of the {kind} {name}, which has {sorted(files)}"
            )
        return files[key]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether a label selector chooses these labels."""
    return selector.items() <= labels.items()


def container_port(container: Object, port: int | str, *, wanted_by: str) -> int:
    """The number of a port given by name or number."""
    if isinstance(port, int):
        return port
    for each in container.get("ports", []):
        if each.get("name") == port:
            return int(each["containerPort"])
    raise ChartFault(
        f"{wanted_by} names the port {port}, which the container {container['name']} does not have"
    )


def broker_users() -> dict[str, Any]:
    """The Secret with the broker's passwords, which Helm makes only where it reaches a cluster."""
    passwords = {f"{role}-password": f"password-of-{role}" for role in ("learner", "generator", "operator")}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "asympo-broker-users"},
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in passwords.items()},
    }
