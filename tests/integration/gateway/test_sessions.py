"""Agents that know only a base_url: what they say and hear becomes one group."""

import importlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asympo.common.codec import WireLimits, decode_group
from asympo.common.records import ResponseSegment, RolloutGroup
from asympo.common.rollout_log import RunLog, RunState
from asympo.gateway.settings import GatewaySettings
from asympo.local.ports import free_port
from asympo.testing.tiny_model import write_tiny_model

from tests.integration.gateway.conftest import AGENTS, FILES, RunningGateway
from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_ingest import NUM_SUMS, post
from tests.integration.rollout_log.conftest import Learner, start_run

openai = pytest.importorskip("openai")
importlib.import_module("transformers.models.auto.tokenization_auto")

StartGateway = Callable[..., RunningGateway]


@pytest.fixture
def door() -> Iterator[FakeDoor]:
    door = FakeDoor()
    yield door
    door.stop()


def start(gateway: RunningGateway, **body: Any) -> list[dict[str, str]]:
    answer = post(gateway, {"own_prompt": True, "num_sessions": 2} | body, path="/rl/start_session")
    assert answer.status_code == 200, answer.text
    sessions: list[dict[str, str]] = answer.json()["sessions"]
    return sessions


def say(session: dict[str, str], *texts: str, stream: bool = False) -> list[dict[str, str]]:
    """An agent of two lines: the OpenAI package, and the history that it keeps."""
    client = openai.OpenAI(base_url=session["base_url"], api_key="any", max_retries=0)
    history: list[Any] = []
    for text in texts:
        history.append({"role": "user", "content": text})
        answer = client.chat.completions.create(model="any", messages=history, stream=stream)
        if stream:
            content = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        else:
            content = answer.choices[0].message.content
        history.append({"role": "assistant", "content": content})
    return history


def ask(session: dict[str, str], *messages: tuple[str, str]) -> None:
    """One request with a history of its own."""
    client = openai.OpenAI(base_url=session["base_url"], api_key="any", max_retries=0)
    history: list[Any] = [{"role": role, "content": content} for role, content in messages]
    client.chat.completions.create(model="any", messages=history, n=None)


def complete(gateway: RunningGateway, session: dict[str, str], reward: float) -> None:
    path = f"/sessions/{session['session_id']}/complete"
    assert httpx.post(gateway.http + path, json={"reward": reward}).status_code == 200


def outcome(gateway: RunningGateway, session: dict[str, str]) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while True:
        found = httpx.get(f"{gateway.http}/sessions/{session['session_id']}").json()["group"]
        if found["outcome"] != "open":
            return dict(found)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def the_group(learner: Learner) -> RolloutGroup:
    (entry,) = learner.consume(10, block_seconds=20)
    return decode_group(entry.payload, limits=WireLimits())


@pytest.mark.parametrize("stream", [False, True])
def test_turns_of_an_agent_become_one_response_with_what_it_heard_as_context(
    stream: bool, log: RunLog, door: FakeDoor, start_gateway: StartGateway
) -> None:
    learner = start_run(log)
    gateway = start_gateway(doors=(door.address,))
    one, two = start(gateway)
    history = say(one, "a", "b", stream=stream)
    assert [each["content"] for each in history] == ["a", "1", "b", "2"]
    say(two, "a", stream=stream)
    complete(gateway, one, 1.0)
    complete(gateway, two, 0.0)
    assert outcome(gateway, two) == {"outcome": "appended", "failures": []}
    group = the_group(learner)
    assert group.group_id.startswith("agents/")
    assert bytes(group.prompt.token_ids) == b"user:a;assistant:"
    first, second = group.responses
    assert bytes(first.token_ids) == b"1;user:b;assistant:2;"
    assert first.trained_token_mask is not None
    sampled = [
        token
        for token, is_sampled in zip(first.token_ids, first.trained_token_mask, strict=True)
        if is_sampled
    ]
    assert bytes(sampled) == b"1;2;"
    assert (bytes(second.token_ids), first.reward, second.reward) == (b"3;", 1.0, 0.0)
    assert {body["model"] for body in door.bodies} == {"policy"}


@pytest.mark.parametrize("stream", [False, True])
def test_agent_of_the_responses_api_is_trained_like_any_other(
    stream: bool, log: RunLog, door: FakeDoor, start_gateway: StartGateway
) -> None:
    learner = start_run(log)
    gateway = start_gateway(doors=(door.address,))
    sessions = start(gateway)
    for reward, session in enumerate(sessions):
        client = openai.OpenAI(base_url=session["base_url"], api_key="any", max_retries=0)
        history: list[Any] = []
        for text in ("a", "b"):
            history.append({"role": "user", "content": text})
            answer = client.responses.create(model="any", input=history, stream=stream)
            if stream:
                answer = list(answer)[-1].response
            history += answer.output
        complete(gateway, session, reward)
    assert outcome(gateway, sessions[0]) == {"outcome": "appended", "failures": []}
    group = the_group(learner)
    assert bytes(group.prompt.token_ids) == b"user:a;assistant:"
    assert [bytes(each.token_ids) for each in group.responses] == [
        b"1;user:b;assistant:2;",
        b"3;user:b;assistant:4;",
    ]
    assert [each.finish_reason.value for each in group.responses] == ["stop", "length"]


def test_streamed_answer_to_a_long_prompt_is_read(
    log: RunLog, door: FakeDoor, start_gateway: StartGateway
) -> None:
    """One event of the stream holds all ids of the prompt."""
    learner = start_run(log)
    gateway = start_gateway(doors=(door.address,))
    for session in start(gateway):
        say(session, "e" * 120_000, "b", stream=True)
        complete(gateway, session, float(session["session_id"][0] > "7"))
    group = the_group(learner)
    assert len(group.prompt.token_ids) == 120_000 + len("user:;assistant:")
    assert [len(each.token_ids) for each in group.responses] == [len("1;user:b;assistant:2;")] * 2


def test_own_beginnings_of_agents_are_context_behind_the_prompt_they_share(
    log: RunLog, door: FakeDoor, start_gateway: StartGateway
) -> None:
    learner = start_run(log)
    gateway = start_gateway(doors=(door.address,))
    for session, text in zip(start(gateway), ("be kind", "be brief"), strict=True):
        say(session, text)
        complete(gateway, session, len(text))
    group = the_group(learner)
    assert bytes(group.prompt.token_ids) == b"user:be "
    assert [bytes(each.token_ids) for each in group.responses] == [
        b"kind;assistant:1;",
        b"brief;assistant:2;",
    ]
    masks = [each.trained_token_mask for each in group.responses]
    assert [mask and mask.index(True) for mask in masks] == [len("kind;assistant:"), len("brief;assistant:")]


def test_history_that_was_rewritten_or_forked_is_further_segments_of_one_response(
    log: RunLog, door: FakeDoor, start_gateway: StartGateway
) -> None:
    learner = start_run(log)
    gateway = start_gateway(doors=(door.address,))
    plain, summarising, forking = start(gateway, num_sessions=3)
    say(plain, "a")
    say(summarising, "a", "b")
    say(summarising, "sum: 2", "c")
    say(forking, "a", "b")
    for text in ("c", "d"):
        ask(forking, ("user", "a"), ("assistant", "6"), ("user", text))
    for reward, session in enumerate((plain, summarising, forking)):
        complete(gateway, session, reward)
    assert outcome(gateway, plain) == {"outcome": "appended", "failures": []}
    group = the_group(learner)
    assert bytes(group.prompt.token_ids) == b"user:a;assistant:"
    assert [each.reward for each in group.responses] == [0.0, 1.0, 2.0]
    one, two, three = group.responses
    assert (bytes(one.token_ids), one.segments) == (b"1;", ())
    assert (two.token_ids, two.trained_token_mask) == ((), None)
    # Context, all ids after it, and those of them that the policy sampled here.
    assert [shown(each) for each in two.segments] == [
        (b"", b"2;user:b;assistant:3;", b"2;3;"),
        (b"user:sum: 2;assistant:", b"4;user:c;assistant:5;", b"4;5;"),
    ]
    assert [shown(each) for each in three.segments] == [
        (b"", b"6;user:b;assistant:7;", b"6;7;"),
        (b"user:a;assistant:6;user:c;assistant:", b"8;", b"8;"),
        (b"user:a;assistant:6;user:d;assistant:", b"9;", b"9;"),
    ]


def shown(segment: ResponseSegment) -> tuple[bytes, bytes, bytes]:
    mask = segment.trained_token_mask or (True,) * len(segment.token_ids)
    sampled = [token for token, is_sampled in zip(segment.token_ids, mask, strict=True) if is_sampled]
    return bytes(segment.context_ids), bytes(segment.token_ids), bytes(sampled)


def test_session_is_left_out_by_name(log: RunLog, door: FakeDoor, start_gateway: StartGateway) -> None:
    # As an older release creates it, whose learner may still train it.
    learner = start_run(log, group_size=5, schema_version=1)
    gateway = start_gateway(doors=(door.address,))
    assert post(gateway, {"own_prompt": True, "num_sessions": 6}, path="/rl/start_session").status_code == 400
    sessions = start(gateway, num_sessions=5)
    for session in sessions[:4]:
        say(session, "a")
    say(sessions[0], "a summary of what was said")
    for reward, session in enumerate((*sessions[:3], sessions[4])):
        complete(gateway, session, reward)
    httpx.post(gateway.http + "/rl/end_session", json={"session_id": sessions[3]["session_id"]})
    assert outcome(gateway, sessions[0]) == {
        "outcome": "appended",
        "failures": ["history_rewritten", "no_reward", "no_turns"],
    }
    assert [each.reward for each in the_group(learner).responses] == [1.0, 2.0]


def test_leased_prompt_is_answered_by_sessions_or_given_back_at_the_deadline(
    log: RunLog, door: FakeDoor, start_gateway: StartGateway, tmp_path: Path
) -> None:
    learner = start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"}, max_prompt_failures=1)
    model = str(write_tiny_model(tmp_path / "model"))
    gateway = start_gateway(doors=(door.address,), model=model)
    started = post(gateway, {}, path="/rl/start_session").json()
    assert len(started["sessions"]) == 4, "as many as the run has responses in a group"
    assert started["messages"] or started["prompt"]
    assert 0 < started["session_seconds"] <= 600
    for session in started["sessions"]:
        say(session, "a")
        complete(gateway, session, 1.0)
    assert the_group(learner).group_id == started["group_id"]

    hasty = start_gateway(doors=(door.address,), model=model, session_seconds=0.1)
    started = post(hasty, {}, path="/rl/start_session").json()
    assert outcome(hasty, started["sessions"][1])["outcome"] == "abandoned"
    stats = log.stats.read()
    assert (stats.leases, stats.prompts_set_aside) == (0, 0), "nobody has said that the prompt is at fault"

    again = post(gateway, {}, path="/rl/start_session").json()
    assert again["group_id"] == started["group_id"]
    for session in again["sessions"]:
        httpx.post(f"{gateway.http}/rl/end_session", json={"session_id": session["session_id"]})
    assert outcome(gateway, again["sessions"][0])["outcome"] == "not_enough"
    stats = log.stats.read()
    assert (stats.leases, stats.prompts_set_aside) == (0, 1)

    log.broker.command("HSET", log.access.key("learner"), "max_record_bytes", 10)
    started = post(gateway, {}, path="/rl/start_session").json()
    for session in started["sessions"]:
        say(session, "a")
        complete(gateway, session, 1.0)
    ended = outcome(gateway, started["sessions"][0])
    assert (ended["outcome"], "more bytes" in ended["failures"][0]) == ("too_large", True)
    stats = log.stats.read()
    assert (stats.leases, stats.prompts_set_aside) == (0, 2)


def test_no_prompt_is_leased_before_a_generator_can_be_asked(
    log: RunLog, door: FakeDoor, start_gateway: StartGateway, tmp_path: Path
) -> None:
    learner = start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"}, max_prompt_failures=1)
    model = str(write_tiny_model(tmp_path / "model"))
    port = free_port()
    gateway = start_gateway(doors=(f"http://127.0.0.1:{port}/v1",), model=model)
    refused = post(gateway, {"wait_seconds": 0}, path="/rl/start_session")
    assert (refused.status_code, "none of 1 generators" in refused.text) == (503, True)
    assert log.stats.read().leases == 0
    with socket.create_server(("127.0.0.1", port)):
        assert len(post(gateway, {}, path="/rl/start_session").json()["sessions"]) == 4
    log.state.set(RunState.FINISHED, fence=learner.fence)
    assert post(gateway, {"wait_seconds": 0}, path="/rl/start_session").status_code == 410


def test_session_is_asked_elsewhere_when_its_generator_is_gone(
    log: RunLog, door: FakeDoor, start_gateway: StartGateway
) -> None:
    start_run(log, group_size=8)
    dead, gone, dying = FakeDoor(), FakeDoor(), FakeDoor()
    gone.stop()
    dead.status = 503
    dying.breaks_off = True
    gateway = start_gateway(doors=(dead.address, gone.address, dying.address, door.address))
    for session in start(gateway, num_sessions=8):
        say(session, "a")
    assert door.num_asked == 8
    door.status = 503
    with pytest.raises(openai.APIStatusError, match="none of 4 generators"):
        say(start(gateway)[0], "a")
    dead.stop()
    dying.stop()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/rl/set_reward", {"session_id": "x", "reward": 1}, 404),
        ("/rl/set_reward", {"reward": 1}, 400),
        ("/rl/end_session", {"session_id": 3}, 400),
        ("/sessions/{id}/complete", {"reward": "much"}, 400),
        ("/sessions/{id}/complete", {"reward": True}, 400),
        ("/sessions/{id}/complete", {"reward": 10**400}, 400),
        ("/sessions/{id}/complete", {"reward": 1e9}, 400),
        ("/sessions/{id}/complete", {"reward": 1, "functons": {}}, 400),
        ("/sessions/{id}/complete", {"reward": 1, "functions": {"a": 1e31}}, 400),
        ("/sessions/{id}/complete", {"reward": 1, "functions": {"\ud800": 1}}, 400),
        ("/sessions/{id}/v1/embeddings", {}, 404),
        ("/sessions/{id}/v1/chat/completions", {"messages": [], "n": 2}, 400),
        ("/sessions/{id}/v1/completions", {"prompt": ["a", "b"]}, 400),
        ("/sessions/{id}/v1/completions", {"prompt": [[1], [2]]}, 400),
        ("/sessions/none/v1/chat/completions", {"messages": []}, 404),
        ("/v1/chat/completions", {"messages": []}, 400),
        ("/v1/embeddings", {}, 404),
    ],
)
def test_wrong_request_of_a_session_is_refused(
    path: str, body: dict[str, Any], status: int, log: RunLog, door: FakeDoor, start_gateway: StartGateway
) -> None:
    start_run(log)
    gateway = start_gateway(doors=(door.address,))
    session = start(gateway)[0]
    content = json.dumps(body)
    answer = httpx.post(gateway.http + path.replace("{id}", session["session_id"]), content=content)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_closed_session_takes_no_more(log: RunLog, door: FakeDoor, start_gateway: StartGateway) -> None:
    start_run(log)
    gateway = start_gateway(doors=(door.address,))
    session = start(gateway)[0]
    say(session, "a")
    complete(gateway, session, 1.0)
    # As whoever has not heard the answer says it again.
    complete(gateway, session, 1.0)
    with pytest.raises(openai.ConflictError):
        say(session, "a")
    again = httpx.post(f"{gateway.http}/sessions/{session['session_id']}/complete", json={"reward": 2})
    assert again.status_code == 409


def test_misspelt_wish_leases_no_prompt(log: RunLog, door: FakeDoor, start_gateway: StartGateway) -> None:
    start_run(log)
    gateway = start_gateway(doors=(door.address,))
    for body, said in (({"own_promt": True}, "own_promt: there is no such"), ({"own_prompt": 1}, "true or")):
        refused = post(gateway, body, path="/rl/start_session")
        assert (refused.status_code, said in refused.text) == (400, True), refused.text
    assert log.stats.read().leases == 0


def test_sessions_need_staleness_and_a_token_for_them(
    log: RunLog, door: FakeDoor, start_gateway: StartGateway
) -> None:
    start_run(log, max_staleness=0)
    gateway = start_gateway(doors=(door.address,))
    refused = post(gateway, {"own_prompt": True}, path="/rl/start_session")
    assert (refused.status_code, "max_staleness 0" in refused.text) == (409, True)
    assert post(gateway, {}, path="/rl/start_session", token=FILES).status_code == 403
    assert post(gateway, {}, path="/rl/start_session", token=AGENTS + "x").status_code == 401


def test_engine_without_token_ids_is_named(log: RunLog, door: FakeDoor, start_gateway: StartGateway) -> None:
    start_run(log)
    door.has_token_ids = False
    gateway = start_gateway(doors=(door.address,))
    sessions = start(gateway)
    for session in sessions:
        say(session, "a")
        complete(gateway, session, 1.0)
    assert outcome(gateway, sessions[0]) == {"outcome": "not_enough", "failures": ["no_token_ids"] * 2}


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "http://a:1/v1,http://b:2/v1", "http://"])
def test_doors_are_addresses_one_each(address: str) -> None:
    with pytest.raises(ValueError, match="no address of a door"):
        GatewaySettings(redis_url="redis://127.0.0.1", run="r", doors=(address,))
