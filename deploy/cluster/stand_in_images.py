"""Images for the chart where no registry is reached.

A Debian, the packages of this environment, the code of this repository. Learner and generator have the
packages of the learner's image; the generator's engine is the simulated one. What starts in them, and with
which environment, is read from the Dockerfiles in deploy/docker.
"""

import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from deploy.chart import rendering
from deploy.pods.images import image_of

ROOT = rendering.ROOT
DEBIAN_PYTHON = (3, 11)
PAUSE = "docker.io/library/pause:stand-in"
_DEBIAN_PACKAGES = "ca-certificates,python3,tini,libgomp1,libnuma1,redis-server"
_SITE = PurePosixPath("opt/asympo/lib/python3.11/site-packages")
_PATH = "/opt/asympo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MEDIA = "application/vnd.oci.image"
_ASYMPO = "#!/opt/asympo/bin/python\nimport sys\nfrom asympo.cli import main\nsys.exit(main())\n"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One uncompressed layer."""

    path: Path
    digest: str
    """SHA-256 in hexadecimal digits."""

    @classmethod
    def of(cls, path: Path) -> "Layer":
        """A file as a layer."""
        with path.open("rb") as file:
            return cls(path=path, digest=hashlib.file_digest(file, "sha256").hexdigest())


def build(cache: Path) -> Path:
    """A directory in the layout of OCI with every image that the pods of the cluster run."""
    directory = cache / "images"
    directory.mkdir(exist_ok=True)
    debian, packages, code = _debian(directory), _packages(directory), _code(directory)
    layout = Layout(directory / "layout")
    layout.add(PAUSE, [debian], entrypoint=["sleep", "infinity"])
    broker = yaml.safe_load((ROOT / "helm/asympo/values.yaml").read_text())["redis"]["embedded"]["image"]
    layout.add(f"docker.io/{broker['repository']}:{broker['tag']}", [debian])
    version = yaml.safe_load((ROOT / "helm/asympo/Chart.yaml").read_text())["appVersion"]
    for service in ("learner", "generator"):
        name = f"asympo-{service}:{version}-cpu"
        image = image_of({"image": name, "name": service})
        layers = [debian, packages, code]
        layout.add(
            f"docker.io/library/{name}",
            layers,
            entrypoint=list(image.entrypoint),
            environment=image.environment,
        )
    layout.finish()
    return layout.directory


def _debian(directory: Path) -> Layer:
    path = directory / "debian.tar"
    if not path.exists():
        sys.stdout.write("making a Debian for the images ...\n")
        partial, tree = directory / "debian.partial", directory / "debian"
        shutil.rmtree(tree, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={_DEBIAN_PACKAGES}", "bookworm", str(tree)]
        with (directory / "debootstrap.log").open("wb") as log:
            if subprocess.run(command, stdout=log, stderr=log, check=False).returncode != 0:
                raise SystemExit(f"debootstrap failed; its log is {log.name}")
        exclude = [
            "--exclude=./var/cache/apt/archives/*.deb",
            "--exclude=./var/lib/apt/lists/*",
            "--exclude=./dev/*",
        ]
        subprocess.run(["tar", "--one-file-system", *exclude, "-C", tree, "-cf", partial, "."], check=True)
        partial.rename(path)
        shutil.rmtree(tree)
    return Layer.of(path)


def _packages(directory: Path) -> Layer:
    """What learner-cpu.lock names: from here, or fetched where only Debian's Python needs it."""
    lock = (ROOT / "deploy/docker/learner-cpu.lock").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE))
    here = {name: _version(name) for name in pins}
    stamp = hashlib.sha256(json.dumps([pins, here]).encode()).hexdigest()[:12]
    path = directory / f"packages-{stamp}.tar"
    if not path.exists():
        sys.stdout.write("packing the Python packages for the images ...\n")
        for old in directory.glob("packages-*.tar"):
            old.unlink()
        partial = path.with_suffix(".partial")
        with tarfile.open(partial, "w") as tar, tempfile.TemporaryDirectory(dir=directory) as fetched:
            absent = [f"{name}=={pins[name]}" for name, version in here.items() if not version]
            if absent:
                command = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", fetched)
                subprocess.run([*command, *absent], check=True)
            tar.add(fetched, str(_SITE), filter=_as_root)
            for name in (name for name, version in here.items() if version):
                for source, target in _files_of(name):
                    tar.add(source, str(target), recursive=False, filter=_as_root)
        partial.rename(path)
    return Layer.of(path)


def _version(name: str) -> str:
    """Empty when it is not installed here."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _files_of(name: str) -> Iterator[tuple[Path, PurePosixPath]]:
    for each in importlib.metadata.distribution(name).files or []:
        source = Path(str(each.locate()))
        if ".." not in each.parts and each.suffix != ".pyc" and source.is_file():
            yield source, _SITE / PurePosixPath(each)


def _code(directory: Path) -> Layer:
    path = directory / "code.tar"
    with tarfile.open(path, "w") as tar:
        links = {"opt/asympo/bin/python": "/usr/bin/python3", "opt/asympo/bin/python3": "/usr/bin/python3"}
        for name, target in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        _write(
            tar,
            "opt/asympo/pyvenv.cfg",
            "home = /usr/bin\ninclude-system-site-packages = false\n",
            mode=0o644,
        )
        _write(tar, "opt/asympo/bin/asympo", _ASYMPO, mode=0o755)
        for source in sorted((ROOT / "services/asympo").rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                tar.add(source, str(_SITE / source.relative_to(ROOT / "services")), filter=_as_root)
        for source in Path(str(importlib.metadata.distribution("asympo").locate_file(""))).glob(
            "asympo-*.dist-info/*"
        ):
            if source.name in ("METADATA", "entry_points.txt"):
                tar.add(source, str(_SITE / source.parent.name / source.name), filter=_as_root)
    return Layer.of(path)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    # Readable by the user of the pods, whatever the umask was here.
    member.mode |= 0o444 | (0o111 if member.mode & 0o100 else 0)
    return member


def _write(tar: tarfile.TarFile, name: str, text: str, *, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(text.encode()), mode
    tar.addfile(member, BytesIO(text.encode()))


class Layout:
    """Images that share their layers; a layer is a hard link, not a copy."""

    def __init__(self, directory: Path) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self.directory = directory
        self._blobs = directory / "blobs/sha256"
        self._blobs.mkdir(parents=True)
        self._manifests: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        layers: list[Layer],
        *,
        entrypoint: list[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """One image under its full name."""
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Env": [f"{key}={value}" for key, value in {"PATH": _PATH, **(environment or {})}.items()],
                "Entrypoint": entrypoint or [],
                "User": "10001:10001",
            },
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{each.digest}" for each in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": self._blob(config, f"{_MEDIA}.config.v1+json"),
            "layers": [self._linked(each) for each in layers],
        }
        described = self._blob(manifest, f"{_MEDIA}.manifest.v1+json")
        self._manifests.append(described | {"annotations": {"io.containerd.image.name": name}})

    def finish(self) -> None:
        """Writes what makes the directory a layout."""
        index = {"schemaVersion": 2, "manifests": self._manifests}
        (self.directory / "index.json").write_text(json.dumps(index))
        (self.directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def _linked(self, layer: Layer) -> dict[str, Any]:
        blob = self._blobs / layer.digest
        if not blob.exists():
            blob.hardlink_to(layer.path)
        size = layer.path.stat().st_size
        return {"mediaType": f"{_MEDIA}.layer.v1.tar", "digest": f"sha256:{layer.digest}", "size": size}

    def _blob(self, content: object, media_type: str) -> dict[str, Any]:
        encoded = json.dumps(content).encode()
        digest = hashlib.sha256(encoded).hexdigest()
        (self._blobs / digest).write_bytes(encoded)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(encoded)}
