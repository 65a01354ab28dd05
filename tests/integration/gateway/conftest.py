"""A gateway in a thread of its own, with a run to work for."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asympo.common.errors import AsympoError
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import Broker, RunLog
from asympo.gateway.app import GatewayProcess
from asympo.gateway.settings import GatewaySettings

TOKENS = """
[[producers]]
name = "agents"
token = "agents-token-0123456789"

[[producers]]
name = "files"
token = "files-token-0123456789"
scopes = ["submit"]
share = 0.25
"""
AGENTS, FILES = "agents-token-0123456789", "files-token-0123456789"


class RunningGateway:
    """The service as `asympo gateway` runs it, in this process."""

    def __init__(self, settings: GatewaySettings) -> None:
        # No signals: they belong to the main thread.
        self._stop = StopSignal(signals=())
        self.process: GatewayProcess | None = None
        self._error: AsympoError | None = None
        self._is_up = threading.Event()
        self._settings = settings
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._is_up.wait(30)

    async def _run(self) -> None:
        self.process = GatewayProcess(settings=self._settings, stop=self._stop)
        serving = asyncio.ensure_future(self.process.run())
        while not serving.done() and self.process.gateway.not_ready_reason and not self._stop.is_set:
            await asyncio.sleep(0.01)
        self._is_up.set()
        try:
            await serving
        except AsympoError as error:
            self._error = error

    def error(self) -> AsympoError | None:
        """What it has ended with by itself, once it has."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        error, self._error = self._error, None
        return error

    @property
    def http(self) -> str:
        assert self.process is not None
        return f"http://127.0.0.1:{self.process.http_port}"

    @property
    def grpc(self) -> str:
        assert self.process is not None
        return f"grpc://127.0.0.1:{self.process.rpc.port}"

    def stop(self) -> None:
        self._stop.set("the test has ended")
        assert self.error() is None


@pytest.fixture
def broker(broker_url: str) -> Iterator[Broker]:
    broker = Broker.connect(broker_url)
    yield broker
    broker.close()


@pytest.fixture
def log(broker: Broker, run_name: str) -> RunLog:
    return RunLog(broker, run_name)


@pytest.fixture
def start_gateway(broker_url: str, run_name: str, tmp_path: Path) -> Iterator[Callable[..., RunningGateway]]:
    """Starts gateways for the test's run, with two producers unless told otherwise."""
    started: list[RunningGateway] = []

    def start(**changes: Any) -> RunningGateway:
        path = tmp_path / "producers.toml"
        path.write_text(TOKENS)
        values = {"redis_url": broker_url, "run": run_name, "http_port": 0, "grpc_port": 0, "producers": path}
        started.append(RunningGateway(GatewaySettings(**(values | changes))))
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()


def blocked(log: RunLog) -> set[str]:
    """Connections that the broker lets wait; some may be left from an earlier test."""
    return {each["id"] for each in log.broker.client.client_list() if "b" in each["flags"]}
