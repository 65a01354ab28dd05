"""Callers that leave before they are answered."""

import json
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from asympo.common.rollout_log import RunLog
from asympo.testing.tiny_model import write_tiny_model

from tests.integration.gateway.conftest import AGENTS, RunningGateway
from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_ingest import NUM_SUMS, post
from tests.integration.gateway.test_sessions import say, start
from tests.integration.rollout_log.conftest import must_lease, start_run


@pytest.mark.parametrize("path", ["/v1/work", "/rl/start_session"])
def test_prompt_goes_to_a_caller_that_is_still_there(
    path: str, log: RunLog, start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"}, lease_seconds=120.0)
    lease, *_ = [must_lease(log) for _ in range(8)]
    door = FakeDoor()
    gateway = start_gateway(doors=(door.address,), model=str(write_tiny_model(tmp_path / "model")))
    leaving = HTTPConnection(gateway.http.removeprefix("http://"))
    headers = {"authorization": f"Bearer {AGENTS}"}
    leaving.request("POST", path, body=json.dumps({"wait_seconds": 60}), headers=headers)
    while not log.broker.client.info("clients")["blocked_clients"]:
        time.sleep(0.01)
    leaving.close()
    log.leases.hand_back(lease, reason="test")
    given = post(gateway, {"wait_seconds": 10}, path=path)
    assert (given.status_code, given.json().get("group_id")) == (200, lease.group_id)
    door.stop()


def test_answer_that_its_agent_has_not_heard_is_ended_and_not_trained(
    log: RunLog, start_gateway: Callable[..., RunningGateway]
) -> None:
    start_run(log)
    door = FakeDoor()
    door.hangs = True
    gateway = start_gateway(doors=(door.address,))
    session, _ = start(gateway)
    leaving = HTTPConnection(gateway.http.removeprefix("http://"))
    body = {"messages": [{"role": "user", "content": "a"}]}
    leaving.request("POST", f"/sessions/{session['session_id']}/v1/chat/completions", body=json.dumps(body))
    assert door.has_begun.wait(30)
    leaving.close()
    assert door.was_left.wait(30)
    door.hangs = False
    say(session, "a")
    assert httpx.get(f"{gateway.http}/sessions/{session['session_id']}").json()["turns"] == 1
    door.stop()
