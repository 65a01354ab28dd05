"""A run with a gateway: started, looked after and stopped like its other services."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from asympo.client import Client
from asympo.local.ports import free_port
from asympo.testing.run_process import RunProcess

from tests.integration.run.conftest import last_step


@pytest.mark.timeout(300)
def test_gateway_of_a_run_takes_groups_and_comes_back_when_it_is_killed(
    start: Callable[..., RunProcess], tmp_path: Path
) -> None:
    directory, port = tmp_path / "runs" / "tiny", free_port()
    run = start(f"--gateway.http-port={port}")
    address = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{address}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    run.until(is_ready, seconds=120)
    assert f"the gateway takes groups on {address}" in run.log
    answers = [("4", 1.0), ("5", 0.0)]
    with Client(address, max_wait_seconds=120) as client:
        assert client.submit("2 + 2?", answers, group_id="1").outcome == "appended"
        [gateway] = run.services("gateway.toml")
        gateway.kill()
        # The client asks until there is somebody, and the log knows what it had.
        assert client.submit("2 + 2?", answers, group_id="1").outcome == "duplicate"
    reached = last_step(directory)
    run.until(lambda: last_step(directory) > reached + 2, seconds=120)
    assert "gateway was killed by SIGKILL; starting it again" in run.log
    assert run.end(signal.SIGINT, seconds=120) == 130, run.log
    assert json.loads((directory / "run.json").read_text())["step"] > reached
    left = [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(each.info["cmdline"])]
    assert not left
