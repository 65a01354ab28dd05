"""Groups through the gateway, by every way that the client knows."""

import asyncio
import importlib
import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

import httpx
import numpy as np
import pytest
from asympo.cli import main
from asympo.client import AsyncClient, Client, text_group
from asympo.client.ways import ProducerRefused
from asympo.common.codec import WireLimits, decode_group
from asympo.common.errors import NoProgress
from asympo.common.records import (
    FinishReason,
    Prompt,
    Response,
    ResponseSegment,
    RolloutGroup,
    UnscoredResponse,
)
from asympo.common.rollout_log import RunLog, RunState
from asympo.testing.tiny_model import write_tiny_model

from tests.integration.gateway.conftest import AGENTS, FILES, RunningGateway
from tests.integration.rollout_log.conftest import must_lease, start_run

importlib.import_module("transformers.models.auto.tokenization_auto")  # takes longer than a request may

StartGateway = Callable[..., RunningGateway]
NUM_SUMS = 321
"""Prompts of the addition task as it is set up by default."""
WAYS = ("http", "grpc", "redis")
TOO_MANY = {str(number): 1.0 for number in range(65)}
GROUP = {
    "group_id": "1",
    "prompt": "2 + 2?",
    "responses": [{"text": "4", "reward": 1}, {"text": "5", "reward": 0}],
}


def post(
    gateway: RunningGateway,
    body: object,
    *,
    token: str = AGENTS,
    path: str = "/v1/rollouts",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}", **headers}
    return httpx.post(gateway.http + path, content=json.dumps(body), headers=headers, timeout=60)


def client_of(gateway: RunningGateway, way: str, log: RunLog, broker_url: str, **options: float) -> Client:
    if way == "redis":
        return Client(broker_url, run=log.run, producer="agents", **options)
    return Client(getattr(gateway, way), token=AGENTS, **options)


@pytest.mark.parametrize("way", WAYS)
def test_submitted_group_is_in_the_log_once_however_often_it_is_sent(
    way: str, log: RunLog, broker_url: str, start_gateway: StartGateway
) -> None:
    learner = start_run(log)
    gateway = start_gateway()
    with client_of(gateway, way, log, broker_url) as client:
        first = client.submit("2 + 2?", [("4", 1.0), ("5", 0.0)], group_id="17-a")
        numbers = (np.float32(1.0), Decimal(0))
        again = client.submit("2 + 2?", list(zip("45", numbers, strict=True)), group_id="17-a")  # type: ignore[arg-type]
    assert (first.outcome, again.outcome) == ("appended", "duplicate")
    (entry,) = learner.consume(10)
    assert entry.group_id == first.group_id == "agents/17-a"
    assert entry.producer == "agents"
    group = decode_group(entry.payload, limits=WireLimits())
    assert (group.group_id, group.prompt.text) == ("agents/17-a", "2 + 2?")
    assert [(each.text, each.reward) for each in group.responses] == [("4", 1.0), ("5", 0.0)]


@pytest.mark.parametrize("way", WAYS)
def test_group_with_all_its_fields_comes_as_it_was_sent(
    way: str, log: RunLog, broker_url: str, start_gateway: StartGateway
) -> None:
    learner = start_run(log)
    first = ResponseSegment(token_ids=(1, 2, 3), trained_token_mask=(True, False, True))
    responses = (
        Response(token_ids=(1, 2), reward=0.0, finish_reason=FinishReason.STOP),
        Response(
            segments=(first, ResponseSegment(context_ids=(4, 5), token_ids=(6,))),
            reward=1.0,
            finish_reason=FinishReason.LENGTH,
            function_values={"judge": 0.5},
            function_notes={"judge/why": "short"},
        ),
    )
    group = RolloutGroup(
        group_id="1",
        prompt=Prompt(token_ids=(9,)),
        responses=responses,
        unscored=(UnscoredResponse(text="3", reason="the judge was away"),),
        columns_json='{"answer": "4"}',
    )
    with client_of(start_gateway(), way, log, broker_url) as client:
        client.submit(group)
    (entry,) = learner.consume(10)
    assert decode_group(entry.payload, limits=WireLimits()) == replace(group, group_id="agents/1")


@pytest.mark.parametrize("way", WAYS)
def test_many_groups_go_in_as_slots_come_and_bad_ones_stop_nobody(
    way: str, log: RunLog, broker_url: str, start_gateway: StartGateway
) -> None:
    learner = start_run(log)  # 8 slots
    gateway = start_gateway(slot_wait_seconds=0.5)
    groups = [text_group("?", [("a", 1.0), ("b", 0.0)], group_id=str(number)) for number in range(40)]
    groups.insert(5, text_group("?", [("a", math.nan), ("b", 0.0)], group_id="1000-bad"))
    groups.insert(9, text_group("?", [("a", None), ("b", 0.0)], group_id="1001-bad"))  # type: ignore[list-item]
    seen: list[str] = []

    def consume() -> None:
        while len(seen) < 40:
            seen.extend(entry.group_id for entry in learner.consume(4))

    consuming = threading.Thread(target=consume, daemon=True)
    consuming.start()
    with client_of(gateway, way, log, broker_url, max_wait_seconds=60) as client:
        refused = client.submit_many(groups)
    consuming.join(60)
    assert seen == [f"agents/{number}" for number in range(40)]
    assert [each.outcome for each in refused] == ["invalid"] * 2
    assert ["reward" in each.reason for each in refused] == [True] * 2


@pytest.mark.parametrize("way", WAYS)
def test_wrong_record_is_refused_with_its_field_and_the_reason(
    way: str, log: RunLog, broker_url: str, start_gateway: StartGateway
) -> None:
    start_run(log)
    gateway = start_gateway()
    with client_of(gateway, way, log, broker_url) as client:
        with pytest.raises(ProducerRefused, match=r"response.* 1.*empty|response 1 is empty"):
            client.submit("?", [("a", 1.0), ("", 0.0)])
        with pytest.raises(ProducerRefused, match="response 1 has reward None, which is not a number"):
            client.submit("?", [("a", 1.0), ("b", None)])  # type: ignore[list-item]
        with pytest.raises(ProducerRefused, match="a number that grows"):
            client.submit("?", [("a", 1.0), ("b", 0.0)], group_id="mine")
    assert log.stats.read().appended == 0


@pytest.mark.parametrize("way", WAYS)
def test_full_log_is_asked_again_until_patience_ends(
    way: str, log: RunLog, broker_url: str, start_gateway: StartGateway
) -> None:
    start_run(log)
    gateway = start_gateway(slot_wait_seconds=0.1)
    for _ in range(8):
        must_lease(log)
    with client_of(gateway, way, log, broker_url, max_wait_seconds=0.5) as client:
        with pytest.raises(NoProgress, match="no_capacity"):
            client.submit("?", [("a", 1.0), ("b", 0.0)])
        with pytest.raises(NoProgress, match="no_capacity"):
            client.submit_many([text_group("?", [("a", 1.0), ("b", 0.0)])])


def test_client_is_asynchronous_where_that_is_wanted(log: RunLog, start_gateway: StartGateway) -> None:
    start_run(log)
    gateway = start_gateway()

    async def submit() -> list[str]:
        async with AsyncClient(gateway.grpc, token=AGENTS) as client:
            work = [client.submit("?", [("a", 1.0), ("b", 0.0)]) for _ in range(5)]
            return [answer.outcome for answer in await asyncio.gather(*work)]

    assert asyncio.run(submit()) == ["appended"] * 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt has neither"),
        ({"responses": 3}, "responses"),
        ({"unscored": [{"text": "a"}]}, "unscored.0.reason"),
        ({"unscored": [{"text": "a", "reason": "b"}] * 70}, "70 unscored responses"),
        ({"responses": []}, "no responses"),
        ({"responses": [{"text": "a"}]}, "responses.0.reward"),
        ({"responses": [{"text": "a", "reward": "much"}]}, "responses.0.reward"),
        ({"responses": [{"text": "a", "reward": 1e9}]}, "response 0 has reward"),
        ({"responses": [{"text": "a", "reward": 1, "finish_reason": "abort"}]}, "responses.0.finish_reason"),
        ({"responses": [{"token_ids": [-1], "reward": 1}]}, "cannot be stored"),
        ({"responses": [{"token_ids": [2**40], "reward": 1}]}, "cannot be stored"),
        ({"responses": [{"text": "\ud800", "reward": 1}]}, "responses.0.text"),
        ({"responses": [{"token_ids": [1, 2], "trained_token_mask": [True], "reward": 1}]}, "mask"),
        ({"responses": [{"segments": [{"context_ids": [1]}], "reward": 1}]}, "segments.0.token_ids"),
        ({"responses": [{"segments": [{"token_ids": [1]}] * 2, "reward": 1}]}, "segment 1 has no context"),
        ({"responses": [{"segments": [{"token_ids": [2**40]}], "reward": 1}]}, "cannot be stored"),
        ({"responses": [{"text": "a", "reward": 1, "function_values": TOO_MANY}]}, "function_values"),
        ({"responses": [{"text": "a", "reward": 1, "function_values": {"f": 1e31}}]}, "beyond 1e+30"),
        ({"prompt": {"text": "a", "token_idz": []}}, "token_idz"),
        ({"group_id": "../1"}, "group_id"),
        ({"group_id": "\ud800"}, "group_id"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_record_of_http_is_refused_by_field_and_its_sibling_is_kept(
    change: dict[str, object], reason: str, log: RunLog, start_gateway: StartGateway
) -> None:
    start_run(log)
    gateway = start_gateway()
    answer = post(gateway, {"groups": [GROUP | {"group_id": "2"} | change, GROUP]})
    assert answer.status_code == 200
    wrong, right = answer.json()["results"]
    assert wrong["outcome"] == "invalid"
    assert reason in wrong["reason"]
    assert (right["outcome"], right["group_id"]) == ("appended", "agents/1")


@pytest.mark.parametrize("body", [[], "x", {"groups": {}}, {"groups": []}, {"groups": [GROUP] * 1025}])
def test_body_that_is_no_request_is_refused(body: object, log: RunLog, start_gateway: StartGateway) -> None:
    start_run(log)
    assert post(start_gateway(), body).status_code == 400


def test_body_that_is_too_large_or_no_json_is_refused(log: RunLog, start_gateway: StartGateway) -> None:
    start_run(log)
    gateway = start_gateway(max_body_bytes=1024)
    assert post(gateway, GROUP | {"prompt": "x" * 2000}).status_code == 413
    headers = {"authorization": f"Bearer {AGENTS}"}
    for content in (b"{", b"[" * 900, b"\xff"):
        assert httpx.post(gateway.http + "/v1/rollouts", content=content, headers=headers).status_code == 400


def test_token_decides_who_one_is_and_what_one_may(log: RunLog, start_gateway: StartGateway) -> None:
    start_run(log)
    gateway = start_gateway()
    assert httpx.post(gateway.http + "/v1/rollouts", json=GROUP).status_code == 401
    refused = post(gateway, GROUP, token="x" * 20)
    assert (refused.status_code, "Bearer" in refused.text) == (401, True), "it says what would be right"
    assert post(gateway, GROUP, token=FILES).json()["results"][0]["group_id"] == "files/1"
    assert post(gateway, {}, token=FILES, path="/v1/work").status_code == 403
    for address in (gateway.http, gateway.grpc):
        with Client(address, token="wrong-token-0123456789") as client, pytest.raises(ProducerRefused):
            client.submit("?", [("a", 1.0), ("b", 0.0)])
    assert httpx.get(gateway.http + "/livez").status_code == 200


def test_share_of_one_producer_leaves_slots_to_others(log: RunLog, start_gateway: StartGateway) -> None:
    start_run(log)  # 8 slots, of which files may hold 2
    gateway = start_gateway(slot_wait_seconds=0.1)
    must_lease(log)
    results = [
        post(gateway, GROUP | {"group_id": str(number)}, token=FILES).json()["results"][0]
        for number in range(3)
    ]
    assert [each["outcome"] for each in results] == ["appended", "appended", "over_share"]
    assert [bool(each["reason"]) for each in results] == [False, False, True]
    assert post(gateway, GROUP).json()["results"][0]["outcome"] == "appended"


def test_group_that_found_no_slot_costs_nothing_of_the_minute(
    log: RunLog, start_gateway: StartGateway, tmp_path: Path
) -> None:
    start_run(log)
    leases = [must_lease(log) for _ in range(8)]
    path = tmp_path / "slow.toml"
    path.write_text(f'[[producers]]\nname = "slow"\ntoken = "{AGENTS}"\ngroups_per_minute = 1\n')
    gateway = start_gateway(producers=path, slot_wait_seconds=0.1)
    assert post(gateway, GROUP).json()["results"][0]["outcome"] == "no_capacity"
    for lease in leases:
        log.leases.hand_back(lease, reason="test")
    outcomes = [
        post(gateway, GROUP | {"group_id": str(number)}).json()["results"][0]["outcome"]
        for number in range(2)
    ]
    assert outcomes == ["appended", "over_share"]


def test_run_that_has_ended_is_said_to_have_ended(log: RunLog, start_gateway: StartGateway) -> None:
    learner = start_run(log)
    gateway = start_gateway()
    log.state.set(RunState.FINISHED, fence=learner.fence)
    assert post(gateway, GROUP).json()["results"][0]["outcome"] == "run_ended"
    assert post(gateway, {}, path="/v1/work").status_code == 410


def test_prompt_of_the_task_is_leased_answered_and_handed_back(
    log: RunLog, start_gateway: StartGateway, tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path / "model")
    learner = start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"})
    gateway = start_gateway(model=str(model))
    work = post(gateway, {"wait_seconds": 5}, path="/v1/work")
    assert work.status_code == 200, work.text
    lease = work.json()
    assert lease["prompt"]["token_ids"]
    assert lease["group_size"] == 4
    body = GROUP | {"group_id": lease["group_id"], "lease_token": lease["lease_token"]}
    assert post(gateway, body | {"group_id": "0-999999"}).json()["results"][0]["outcome"] == "invalid"
    (not_its_own,) = post(gateway, body, token=FILES).json()["results"]
    assert (not_its_own["outcome"], "lease_token" in not_its_own["reason"]) == ("lease_lost", True)
    assert post(gateway, body).json()["results"][0]["outcome"] == "appended"
    # As whoever has not heard the answer goes on, and asks again.
    renewed = post(gateway, {"lease_tokens": [lease["lease_token"]]}, path="/v1/work/renew")
    assert renewed.json() == {"lost": [lease["lease_token"]]}
    assert post(gateway, body).json()["results"][0]["outcome"] == "duplicate"
    assert [entry.group_id for entry in learner.consume(10)] == [lease["group_id"]]
    # The answered one is kept for retries, and is no prompt that anybody works on.
    assert "asympo_gateway_leases 0.0" in httpx.get(f"{gateway.http}/metrics").text
    other = post(gateway, {}, path="/v1/work").json()
    assert "asympo_gateway_leases 1.0" in httpx.get(f"{gateway.http}/metrics").text
    renewed = post(gateway, {"lease_tokens": [other["lease_token"], "x"]}, path="/v1/work/renew")
    assert renewed.json() == {"lost": ["x"]}
    post(gateway, {"handed_back": [other["lease_token"]]}, path="/v1/work/renew")
    assert post(gateway, {}, path="/v1/work").json()["group_id"] == other["group_id"]


def test_lease_is_good_at_every_gateway(log: RunLog, start_gateway: StartGateway, tmp_path: Path) -> None:
    start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"})
    model = str(write_tiny_model(tmp_path / "model"))
    granting, other = start_gateway(model=model), start_gateway()
    lease, back = (post(granting, {"wait_seconds": 5}, path="/v1/work").json() for _ in range(2))
    tokens = [lease["lease_token"], back["lease_token"]]
    assert post(other, {"lease_tokens": [*tokens, "x" * 99]}, path="/v1/work/renew").json() == {
        "lost": ["x" * 99]
    }
    assert post(other, {"handed_back": tokens[1:]}, path="/v1/work/renew").json() == {"lost": []}
    body = {key: value for key, value in GROUP.items() if key != "group_id"} | {"lease_token": tokens[0]}
    (answer,) = post(other, body).json()["results"]
    assert (answer["outcome"], answer["group_id"]) == ("appended", lease["group_id"])
    assert post(other, body | {"lease_token": tokens[1]}).json()["results"][0]["outcome"] == "lease_lost"


def test_messages_become_the_prompt_by_the_policys_own_template(
    log: RunLog, start_gateway: StartGateway, tmp_path: Path
) -> None:
    learner = start_run(log)
    gateway = start_gateway(model=str(write_tiny_model(tmp_path / "model")))
    prompt = [{"role": "user", "content": "hi <|im_end|>"}]
    assert post(gateway, GROUP | {"prompt": prompt}).json()["results"][0]["outcome"] == "appended"
    (entry,) = learner.consume(1)
    group = decode_group(entry.payload, limits=WireLimits())
    assert group.prompt.text.startswith("<|im_start|>user\nhi ")
    assert group.prompt.token_ids.count(2) == 1, "what is spelt like a control token is plain text"


def test_policies_are_followed_as_they_are_announced(log: RunLog, start_gateway: StartGateway) -> None:
    import grpc
    from asympo.v1 import rollout_ingest_service_pb2 as messages
    from asympo.v1.rollout_ingest_service_pb2_grpc import RolloutIngestServiceStub

    learner = start_run(log)
    gateway = start_gateway()
    with grpc.insecure_channel(gateway.grpc.removeprefix("grpc://")) as channel:
        stream = RolloutIngestServiceStub(channel).WatchPolicy(
            messages.RolloutIngestServiceWatchPolicyRequest(),
            metadata=(("authorization", f"Bearer {AGENTS}"),),
        )
        assert next(stream).policy.step == 0
        log.policies.announce(learner.fence, step=4, digest="d4")
        assert next(stream).policy.manifest_digest == "d4"
        stream.cancel()


def test_purge_takes_a_producer_out_of_the_log(
    log: RunLog, broker_url: str, start_gateway: StartGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    start_run(log)
    post(start_gateway(), GROUP)
    command = ["log", "purge", "--redis-url", broker_url, "--run", log.run, "--producer", "agents", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"producer": "agents", "purged": 1, "left": 0}
    assert log.stats.read().open == 0


def test_gateway_without_producers_stays_on_this_machine(start_gateway: StartGateway) -> None:
    with pytest.raises(ValueError, match="beyond this machine callers need tokens"):
        start_gateway(producers=None, http_host="0.0.0.0")


def test_web_pages_write_nothing_into_a_gateway_without_producers(
    log: RunLog, start_gateway: StartGateway
) -> None:
    start_run(log)
    gateway = start_gateway(producers=None)
    assert post(gateway, GROUP, headers={"origin": "https://evil.example"}).status_code == 403
    assert post(gateway, GROUP, headers={"host": "evil.example"}).status_code == 421
    assert log.stats.read().appended == 0
    assert post(gateway, GROUP).status_code == 200
