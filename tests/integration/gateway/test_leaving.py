"""Callers that leave before they are answered, and gateways that do."""

import inspect
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from asympo.common.http_server import QuietServer, serving
from asympo.common.rollout_log import RunLog
from asympo.gateway import sessions
from asympo.testing.tiny_model import write_tiny_model

from tests.integration.gateway.conftest import AGENTS, RunningGateway, blocked
from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_ingest import NUM_SUMS, post
from tests.integration.gateway.test_sessions import complete, outcome, say, start
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
    headers, earlier = {"authorization": f"Bearer {AGENTS}"}, blocked(log)
    leaving.request("POST", path, body=json.dumps({"wait_seconds": 60}), headers=headers)
    while blocked(log) <= earlier:
        time.sleep(0.01)
    leaving.close()
    log.leases.hand_back(lease, reason="test")
    given = post(gateway, {"wait_seconds": 10}, path=path)
    assert (given.status_code, given.json().get("group_id")) == (200, lease.group_id)
    door.stop()


QUESTION = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LONG = b"POST /v1/groups HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000)


@pytest.mark.parametrize("further", [b"", 3 * QUESTION, LONG], ids=["nothing", "short", "long"])
def test_answer_that_its_agent_has_not_heard_is_ended_and_not_trained(
    further: bytes, log: RunLog, start_gateway: Callable[..., RunningGateway]
) -> None:
    """Also where it has asked further things by then, which would be answered next."""
    start_run(log)
    door = FakeDoor()
    door.hangs = True
    gateway = start_gateway(doors=(door.address,))
    session, _ = start(gateway)
    leaving = HTTPConnection(gateway.http.removeprefix("http://"))
    body = {"messages": [{"role": "user", "content": "a"}]}
    leaving.request("POST", f"/sessions/{session['session_id']}/v1/chat/completions", body=json.dumps(body))
    leaving.send(further)
    assert door.has_begun.wait(30)
    leaving.close()
    assert door.was_left.wait(30)
    door.hangs = False
    say(session, "a")
    assert httpx.get(f"{gateway.http}/sessions/{session['session_id']}").json()["turns"] == 1
    door.stop()


def test_gateway_that_stops_finishes_its_answers_and_grants_nothing_more(
    log: RunLog,
    start_gateway: Callable[..., RunningGateway],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Were it not told how long, it would cancel them at once."""
    for function in (QuietServer.__init__, inspect.unwrap(serving)):
        monkeypatch.setitem(function.__kwdefaults__ or {}, "drain_seconds", 0.0)
    start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"})
    for _ in range(8):
        must_lease(log)
    door = FakeDoor()
    model = str(write_tiny_model(tmp_path / "model"))
    gateway = start_gateway(doors=(door.address,), model=model, drain_seconds=60.0)
    session, _ = start(gateway)
    door.may_answer.clear()
    with ThreadPoolExecutor(3) as pool:
        answer = pool.submit(say, session, "a")
        assert door.has_begun.wait(30)
        earlier = blocked(log)
        work = pool.submit(post, gateway, {"wait_seconds": 60}, path="/v1/work")
        while blocked(log) <= earlier:
            time.sleep(0.01)
        stopped = pool.submit(gateway.stop)
        assert work.result().json()["refusal"] == "paused"
        door.may_answer.set()
        assert answer.result()[-1]["content"] == "1"
        stopped.result()
    door.stop()


def test_sessions_that_nobody_closes_are_no_more_than_a_gateway_has_room_for(
    log: RunLog, start_gateway: Callable[..., RunningGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 6)
    start_run(log)
    gateway = start_gateway(doors=("http://127.0.0.1:1/v1",))
    ended, left = start(gateway), start(gateway)
    refused = post(gateway, {"own_prompt": True, "num_sessions": 2}, path="/rl/start_session")
    assert (refused.status_code, "4 sessions are open, of 6" in refused.text) == (429, True)
    complete_all(gateway, ended)
    complete_all(gateway, start(gateway))
    newest = start(gateway)
    told = [httpx.get(f"{gateway.http}/sessions/{each['session_id']}") for each in (*ended, *left, *newest)]
    assert [each.status_code for each in told] == [404, 404, *4 * [200]], "what has ended makes room"


def complete_all(gateway: RunningGateway, group: list[dict[str, str]]) -> None:
    for session in group:
        complete(gateway, session, 1.0)
    assert outcome(gateway, group[0])["outcome"] == "not_enough"
