"""Volumes laid out as directories, and every path of a container turned into the one it has here."""

import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.pods.manifests import ChartFault, Manifests, Object
from tests.pods.network import Network

_ANYWHERE = r"(?<![\w.])0\.0\.0\.0(?![\w.])|(?<=bind )\* -::\*"


@dataclass(frozen=True, kw_only=True)
class PodIdentity:
    """What a pod is called and where it is."""

    name: str
    namespace: str
    address: str
    directory: Path
    """Files of this pod alone."""
    claims: Path
    """Directory with one folder for each claim; shared by all pods."""
    labels: Mapping[str, str] = field(default_factory=dict)


class Layout:
    """The files, arguments and environment of one container as they are on this machine."""

    def __init__(
        self,
        *,
        pod: PodIdentity,
        spec: Object,
        container: Object,
        manifests: Manifests,
        network: Network,
        claim_templates: Mapping[str, Object],
    ) -> None:
        """Creates the directories; raises ChartFault where a volume, mount or reference leads nowhere."""
        self._pod, self._container = pod, container
        self._manifests, self._network = manifests, network
        self._where = f"container {container['name']} of {pod.name}"
        self._volumes = {each["name"]: each for each in spec.get("volumes", [])}
        self._templates = claim_templates
        self._mounts: dict[str, Path] = {}
        for mount in container.get("volumeMounts", []):
            self._mounts[mount["mountPath"].rstrip("/")] = self._directory_of(mount)
        self._substitutions = self._compile()
        for mount in container.get("volumeMounts", []):
            self._write_files(
                self._volumes.get(mount["name"], {}), self._mounts[mount["mountPath"].rstrip("/")]
            )
        self.environment = dict(self._environment())
        self.command = [self.given(part, what="argument") for part in container.get("command", [])]
        self.arguments = [self.given(part, what="argument") for part in container.get("args", [])]

    # --- volumes ---------------------------------------------------------------------------------------

    def _directory_of(self, mount: Object) -> Path:
        name = mount["name"]
        if name in self._templates:
            directory = self._pod.claims / f"{name}-{self._pod.name}"
        elif name not in self._volumes:
            raise ChartFault(f"{self._where} mounts the volume {name}, which the pod does not have")
        elif claim := self._volumes[name].get("persistentVolumeClaim"):
            self._manifests.one("PersistentVolumeClaim", claim["claimName"], wanted_by=self._where)
            directory = self._pod.claims / claim["claimName"]
        elif "emptyDir" in self._volumes[name]:
            directory = self._pod.directory / "volumes" / name
        elif {"configMap", "secret"} & set(self._volumes[name]):
            directory = self._pod.directory / self._container["name"] / name
        else:
            raise ChartFault(f"{self._where} mounts {name}, a volume of a kind that cannot be laid out here")
        directory /= mount.get("subPath", "")
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _write_files(self, volume: Object, directory: Path) -> None:
        for kind, key, name_key in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
            source = volume.get(key)
            if source is None:
                continue
            files = self._manifests.files(kind, source[name_key], wanted_by=self._where)
            items = source.get("items") or [{"key": name, "path": name} for name in files]
            for item in items:
                if item["key"] not in files:
                    raise ChartFault(
                        f"{self._where} mounts the key {item['key']} of {kind} {source[name_key]}: not there"
                    )
                path = directory / item["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                # Secrets are passwords: never rewritten.
                text = files[item["key"]]
                path.write_text(text if kind == "Secret" else self._moved_file(path.name, text))

    def _moved_file(self, name: str, text: str) -> str:
        if name.endswith(".toml"):
            for value in _strings(tomllib.loads(text)):
                self.given(value, what=f"value in {name}")
        return self._moved(text)

    # --- text ------------------------------------------------------------------------------------------

    def _compile(self) -> re.Pattern[str]:
        paths = "|".join(sorted(map(re.escape, self._mounts), key=len, reverse=True)) or "(?!)"
        path = rf"(?<![\w./-])(?P<path>{paths})(?![\w.-])"
        return re.compile(f"{path}|{self._network.pattern}|(?P<anywhere>{_ANYWHERE})")

    def _moved(self, text: str) -> str:
        """The text with mounted paths, Services and the address that means every address replaced."""

        def replacement(found: re.Match[str]) -> str:
            if found["path"]:
                return str(self._mounts[found["path"]])
            if found["anywhere"]:
                return self._pod.address
            return self._network.resolve(found["service"], int(found["port"]))

        return self._substitutions.sub(replacement, text)

    def given(self, text: str, *, what: str) -> str:
        """The same for one value, which may not be a path that nothing mounts or a host that nobody is."""
        text = self._expanded(text)
        if re.match(r"/[A-Za-z]", text) and "\n" not in text:
            is_mounted = any(text == path or text.startswith(f"{path}/") for path in self._mounts)
            if not is_mounted:
                raise ChartFault(f"{self._where}: the {what} {text} lies in no volume that is mounted there")
        moved = self._moved(text)
        if "\n" not in moved:
            self._network.refuse_strangers(moved, where=f"{self._where}: the {what} {text}")
        return moved

    def _expanded(self, text: str) -> str:
        """$(NAME) as Kubernetes expands it, from the container's environment."""
        known = getattr(self, "environment", {})
        return re.sub(r"\$\((\w+)\)", lambda found: known.get(found[1], found[0]), text)

    # --- environment -----------------------------------------------------------------------------------

    def _environment(self) -> Iterator[tuple[str, str]]:
        for source in self._container.get("envFrom", []):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                if key in source:
                    files = self._manifests.files(kind, source[key]["name"], wanted_by=self._where)
                    yield from ((source.get("prefix", "") + name, text) for name, text in files.items())
        for variable in self._container.get("env", []):
            origin = variable.get("valueFrom")
            if origin is None:
                yield variable["name"], self.given(variable.get("value", ""), what=variable["name"])
            else:
                yield variable["name"], self._referenced(variable["name"], origin)
        if "/tmp" in self._mounts:
            yield "TMPDIR", str(self._mounts["/tmp"])

    def _referenced(self, name: str, origin: Object) -> str:
        wanted_by = f"the variable {name} of {self._where}"
        for kind, key in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
            if key in origin:
                return self._manifests.key(kind, origin[key]["name"], origin[key]["key"], wanted_by=wanted_by)
        fields = {
            "metadata.name": self._pod.name,
            "metadata.namespace": self._pod.namespace,
            "status.podIP": self._pod.address,
            "spec.nodeName": os.uname().nodename,
        } | {f"metadata.labels['{key}']": value for key, value in self._pod.labels.items()}
        path = origin.get("fieldRef", {}).get("fieldPath", "")
        if path not in fields:
            raise ChartFault(f"{wanted_by} comes from {origin}, which cannot be told here")
        return fields[path]

    def forget(self) -> None:
        """Deletes what belongs to the pod alone."""
        shutil.rmtree(self._pod.directory / self._container["name"], ignore_errors=True)


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
    elif isinstance(node, str):
        yield node
