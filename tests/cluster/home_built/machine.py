"""Namespaces of the kernel around the node, and what it leaves behind taken away."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from deploy.chart import rendering
from tests.cluster.scenario import CHART

ROOT = rendering.ROOT
CACHE = ROOT / ".cache/k8s"
_CGROUPS = Path("/sys/fs/cgroup")


def missing() -> str:
    """Why the node cannot run here, in one sentence; empty when it can."""
    if not (CACHE / "complete").exists():
        return "Kubernetes is not built; `make k8s-binaries` builds it, in about 11 minutes of one core"
    if os.geteuid() != 0:
        return "it starts real containers, which needs root"
    programs = ("unshare", "iptables", "ip", "mount", "openssl", "debootstrap", "buildah")
    if lacking := [name for name in programs if shutil.which(name) is None]:
        return f"{', '.join(lacking)} is missing; `apt-get install {' '.join(lacking)}`"
    if others := _kubelets():
        return f"another kubelet seems to run here: {others[0]} exists"
    return ""


def broker_image() -> str:
    """Its full name, as the chart's values have it."""
    image = yaml.safe_load((CHART / "values.yaml").read_text())["redis"]["embedded"]["image"]
    return f"docker.io/{image['repository']}:{image['tag']}"


def run(keep: Path | None, *program: str) -> int:
    """The exit code of a module with its arguments and a directory, started in namespaces of its own."""
    if reason := missing():
        sys.stderr.write(f"The home-built node cannot run: {reason}.\n")
        return 2
    subprocess.run([Path(__file__).with_name("images.sh"), broker_image()], check=True)
    namespaces = ("--net", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc")
    with _working_directory(keep) as directory:
        inside = (sys.executable, "-m", *program, str(directory))
        try:
            return subprocess.run(["unshare", *namespaces, *inside], cwd=ROOT, check=False).returncode
        finally:
            _remove_cgroups()


@contextlib.contextmanager
def _working_directory(keep: Path | None) -> Iterator[Path]:
    """Where the node keeps its files; containers need a disk, not a memory file system."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    # Rarely left undeleted: a directory of a container that ended this moment.
    with tempfile.TemporaryDirectory(prefix="run-", dir=CACHE, ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _kubelets() -> list[Path]:
    return [*_CGROUPS.glob("*/kubepods"), *_CGROUPS.glob("kubepods")]


def _remove_cgroups() -> None:
    """The kubelet's control groups, the only thing that its namespaces do not take along."""
    deadline = time.monotonic() + 30
    while roots := _kubelets():
        for root in roots:
            for group in sorted(filter(Path.is_dir, root.rglob("*")), reverse=True):
                with contextlib.suppress(OSError):  # Busy while its last process is being taken down.
                    group.rmdir()
            with contextlib.suppress(OSError):
                root.rmdir()
        if time.monotonic() > deadline:
            sys.stderr.write(f"{roots} could not be removed: processes are still in them\n")
            return
        time.sleep(0.1)
