"""What the manifests ask for and processes cannot honour, found in the manifests themselves."""

from collections.abc import Iterator
from typing import Any

from deploy.pods.manifests import Manifests, Object

_RUN = {"StatefulSet", "Deployment", "Pod", "Service", "ConfigMap", "Secret", "PersistentVolumeClaim"}
_POD = {
    *("containers", "initContainers", "volumes", "terminationGracePeriodSeconds", "restartPolicy"),
    # Held by construction: a process here gets neither a token nor links to Services.
    *("automountServiceAccountToken", "enableServiceLinks"),
}
_CONTAINER = {
    *("name", "command", "args", "env", "envFrom", "ports", "volumeMounts", "lifecycle"),
    *("startupProbe", "livenessProbe", "readinessProbe"),
}
_WORKLOAD = {"replicas", "selector", "template", "serviceName", "volumeClaimTemplates"}
_REASONS = {
    "image": "the image itself: this repository's code runs in its place",
    "imagePullPolicy": "pulling images",
    "securityContext": "user, capabilities, read-only root file system, seccomp",
    "resources": "limits of memory and processor, GPUs",
    "volumes.sizeLimit": "sizes of volumes",
    "volumeMounts.readOnly": "read-only mounts",
    "volumes.medium": "volumes in memory",
}


def unchecked(manifests: Manifests) -> list[str]:
    """Sentences for people, without repetition."""
    found = {
        f"{kind}: {len(list(manifests.of_kind(kind)))} rendered, nothing here enforces them"
        for kind in {each["kind"] for each in manifests.objects} - _RUN
    }
    for thing in manifests.of_kind("StatefulSet", "Deployment", "Pod"):
        spec = thing["spec"]
        if thing["kind"] != "Pod":
            found |= {_sentence(key) for key in spec if key not in _WORKLOAD}
            spec = spec["template"]["spec"]
        found |= {_sentence(key) for key in _fields(spec)}
    return sorted(found)


def _sentence(key: str) -> str:
    return f"{key}: {_REASONS[key]}" if key in _REASONS else key


def _fields(spec: Object) -> Iterator[str]:
    yield from (key for key in spec if key not in _POD)
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        yield from (key for key in container if key not in _CONTAINER)
        for mount in container.get("volumeMounts", []):
            yield from (f"volumeMounts.{key}" for key in mount if key not in ("name", "mountPath", "subPath"))
    for volume in spec.get("volumes", []):
        source: Any = next(value for key, value in volume.items() if key != "name")
        known = ("name", "secretName", "claimName", "items")
        yield from (f"volumes.{key}" for key in source or {} if key not in known)
