"""What the cluster of `make k8s-e2e` is made of, as far as it can be tried without one."""

import re
import socket
import struct
from pathlib import Path

import pytest

from deploy.chart import rendering
from tests.cluster import __main__ as command
from tests.cluster import scenario
from tests.cluster.home_built import machine
from tests.cluster.home_built.names import answer
from tests.helm.conftest import CHART, ROOT

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


def test_home_built_node_that_is_not_built_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "CACHE", tmp_path)
    monkeypatch.setattr("sys.argv", ["tests.cluster", "--home-built"])
    assert command.main() == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"The home-built node cannot run: .*make k8s-binaries.*\.\n", told)


def test_without_a_cluster_kubectl_is_quoted_and_the_home_built_node_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr("sys.argv", ["tests.cluster"])
    assert command.main() == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"kubectl reaches no cluster \(.*current-context.*\): .*--home-built\n", told)


def test_values_that_are_added_later_render_on_those_of_before() -> None:
    values = [scenario.LAPTOP, scenario.OVERLAY, scenario.ONE_IMAGE, scenario.POOLS, scenario.PARTS]
    for added in ([], [scenario.ENVIRONMENT]):
        rendered = rendering.template(CHART, values=[*values, *added])
        assert rendered.returncode == 0, rendered.stderr


def test_claims_of_the_guide_are_those_that_a_cluster_run_makes() -> None:
    page = (
        (ROOT / "docs/kubernetes.md")
        .read_text()
        .partition("$ make k8s-e2e ARGS=--home-built\n")[2]
        .partition("```")[0]
    )
    source = "".join(path.read_text() for path in (ROOT / "tests/cluster").rglob("*.py"))
    claims = re.findall(r"^ *[\d.]+ s  pass  (\D+?)(?:[:\d]|$)", page, re.MULTILINE)
    assert len(claims) == 19
    assert [claim for claim in claims if claim not in source] == []
