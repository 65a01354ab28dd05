"""What the cluster of `make k8s-e2e` is made of, as far as it can be tried without one."""

import hashlib
import json
import re
import socket
import struct
import tomllib
from pathlib import Path

import pytest

from deploy.cluster import __main__ as command
from deploy.cluster.names import answer
from deploy.cluster.one_node import _toml
from deploy.cluster.stand_in_images import Layer, Layout
from tests.helm.conftest import ROOT

_A, _AAAA = 1, 28


def ask(name: str, kind: int = _A) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def addresses_of(service: str, namespace: str) -> list[str] | None:
    if service == "down":
        raise ConnectionRefusedError("no API server")
    return {("asympo-redis", "training"): ["10.0.0.7", "10.0.0.8"]}.get((service, namespace))


@pytest.mark.parametrize(
    ("name", "kind", "code", "addresses"),
    [
        ("asympo-redis.training.svc.cluster.local", _A, 0, ["10.0.0.7", "10.0.0.8"]),
        ("Asympo-Redis.training.svc.cluster.local", _A, 0, ["10.0.0.7", "10.0.0.8"]),
        ("asympo-redis.training.svc.cluster.local", _AAAA, 0, []),
        ("asympo-redis.other.svc.cluster.local", _A, 3, []),
        ("asympo-redis.svc.cluster.local", _A, 3, []),
        ("example.org", _A, 3, []),
        ("down.training.svc.cluster.local", _A, 2, []),
    ],
)
def test_name_service_tells_addresses_of_services_and_of_nothing_else(
    name: str, kind: int, code: int, addresses: list[str]
) -> None:
    question = ask(name, kind)
    reply = answer(question, addresses_of)
    number, flags, _, num_answers, _, _ = struct.unpack_from(">HHHHHH", reply)
    assert (number, flags & 0x800F, num_answers) == (7, 0x8000 | code, len(addresses))
    assert reply[12 : len(question)] == question[12:]
    assert [socket.inet_ntoa(part[-4:]) for part in _sixteens(reply[len(question) :])] == addresses


def _sixteens(records: bytes) -> list[bytes]:
    return [records[at : at + 16] for at in range(0, len(records), 16)]


def test_cluster_that_is_not_built_is_skipped_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "CACHE", tmp_path)
    monkeypatch.setattr("sys.argv", ["deploy.cluster"])
    assert command.main() == 0
    told = capsys.readouterr().out
    assert re.fullmatch(r"The chart is not tried on a cluster: .*make k8s-binaries.*\.\n", told)


def test_images_share_layers_and_every_digest_is_that_of_its_blob(tmp_path: Path) -> None:
    (tmp_path / "layer.tar").write_bytes(b"layer")
    layer = Layer.of(tmp_path / "layer.tar")
    layout = Layout(tmp_path / "layout")
    layout.add("docker.io/library/one:1", [layer], entrypoint=["tini"], environment={"HOME": "/tmp"})
    layout.add("docker.io/library/two:1", [layer])
    layout.finish()
    for path in (tmp_path / "layout/blobs/sha256").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    index = json.loads((tmp_path / "layout/index.json").read_text())
    names = [each["annotations"]["io.containerd.image.name"] for each in index["manifests"]]
    assert names == ["docker.io/library/one:1", "docker.io/library/two:1"]
    blob = tmp_path / "layout/blobs" / index["manifests"][0]["digest"].replace(":", "/")
    manifest = json.loads(blob.read_text())
    config = json.loads(
        (tmp_path / "layout/blobs" / manifest["config"]["digest"].replace(":", "/")).read_text()
    )
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]] == [f"sha256:{layer.digest}"]
    assert config["config"]["Entrypoint"] == ["tini"]
    assert "HOME=/tmp" in config["config"]["Env"]


def test_settings_of_the_container_runtime_are_toml() -> None:
    table = {"version": 2, "a": {"b.c": {"is_on": True, "name": 'x"y'}, "empty": {}}}
    assert tomllib.loads(_toml(table)) == table


def test_claims_of_the_guide_are_those_that_a_cluster_run_makes() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text().partition("$ make k8s-e2e\n")[2].partition("```")[0]
    source = "".join(path.read_text() for path in (ROOT / "deploy/cluster").glob("*.py"))
    claims = re.findall(r"^ *[\d.]+ s  pass  (\D+?)(?:[:\d]|$)", page, re.MULTILINE)
    assert len(claims) == 15
    assert [claim for claim in claims if claim not in source] == []
