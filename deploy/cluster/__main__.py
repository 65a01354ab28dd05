"""python -m deploy.cluster [--keep DIRECTORY]: see the package."""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from deploy.chart import rendering
from deploy.cluster import stand_in_images

ROOT = rendering.ROOT
CACHE = ROOT / ".cache/k8s"
_CGROUPS = Path("/sys/fs/cgroup")


def missing() -> str:
    """Why the cluster cannot run here, in one sentence; empty when it can."""
    if not (CACHE / "complete").exists():
        return "Kubernetes is not built; `make k8s-binaries` builds it, in about 11 minutes of one core"
    if os.geteuid() != 0:
        return "it starts real containers, which needs root"
    programs = ("unshare", "iptables", "ip", "mount", "openssl", "debootstrap")
    if lacking := [name for name in programs if shutil.which(name) is None]:
        return f"{', '.join(lacking)} is missing; `apt-get install {' '.join(lacking)}`"
    if sys.version_info[:2] != stand_in_images.DEBIAN_PYTHON:
        return "the stand-in images take packages from a Python 3.11, and this is another one"
    if others := list(_CGROUPS.glob("*/kubepods")) + list(_CGROUPS.glob("kubepods")):
        return f"another kubelet seems to run here: {others[0]} exists"
    return ""


@contextlib.contextmanager
def working_directory(keep: Path | None) -> Iterator[Path]:
    """Where the cluster keeps its files; containers need a disk, not a memory file system."""
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    # Rarely left undeleted: a directory of a container that ended this moment.
    with tempfile.TemporaryDirectory(prefix="run-", dir=CACHE, ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def remove_cgroups() -> None:
    """The kubelet's control groups, the only thing that its namespaces do not take along."""
    for root in [*_CGROUPS.glob("*/kubepods"), *_CGROUPS.glob("kubepods")]:
        deadline = time.monotonic() + 30
        while root.exists():
            groups = sorted(
                (path for path in root.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)
            )
            for group in [*groups, root]:
                with contextlib.suppress(OSError):  # Busy while its last process is being taken down.
                    group.rmdir()
            if time.monotonic() > deadline:
                sys.stderr.write(f"{root} could not be removed: processes are still in it\n")
                break
            time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.cluster", description=__doc__)
    parser.add_argument("--keep", type=Path, help="leave the logs in this new directory")
    arguments = parser.parse_args()
    if reason := missing():
        sys.stdout.write(f"The chart is not tried on a cluster: {reason}.\n")
        return 0
    images = stand_in_images.build(CACHE)
    namespaces = ("--net", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc")
    with working_directory(arguments.keep) as directory:
        inside = (sys.executable, "-m", "deploy.cluster.inside", str(directory), str(images))
        try:
            return subprocess.run(["unshare", *namespaces, *inside], cwd=ROOT, check=False).returncode
        finally:
            remove_cgroups()


if __name__ == "__main__":
    sys.exit(main())
