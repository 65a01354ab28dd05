"""Groups of one producer that wait in line."""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from asympo.client import text_group
from asympo.common.codec import to_message
from asympo.common.rollout_log import Broker, RunLog
from asympo.gateway import queues
from asympo.v1 import rollout_ingest_service_pb2 as messages
from asympo.v1.rollout_ingest_service_pb2_grpc import RolloutIngestServiceStub

from tests.integration.gateway.conftest import AGENTS, RunningGateway
from tests.integration.gateway.test_ingest import GROUP, post
from tests.integration.rollout_log.conftest import start_run

NUM_SLOTS = 8


def num_queued(gateway: RunningGateway) -> float:
    shown = httpx.get(f"{gateway.http}/metrics").text
    found = re.search(r"^asympo_gateway_queued_groups (.*)$", shown, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize(
    ("max_queued", "per_minute", "refusal"),
    [(256, 6000, "no_capacity"), (16, 6000, "no_capacity"), (256, 1, "over_share")],
)
def test_single_group_behind_many_is_answered_in_its_time(
    max_queued: int,
    per_minute: int,
    refusal: str,
    log: RunLog,
    start_gateway: Callable[..., RunningGateway],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queues, "MAX_WAIT_SECONDS", 0.1)
    start_run(log)
    path = tmp_path / "one.toml"
    path.write_text(f'[[producers]]\nname = "agents"\ntoken = "{AGENTS}"\ngroups_per_minute = {per_minute}\n')
    gateway = start_gateway(max_queued_groups=max_queued, producers=path, slot_wait_seconds=0.5)
    groups = [text_group("?", [("a", 1.0), ("b", 0.0)], group_id=str(number)) for number in range(100)]
    with grpc.insecure_channel(gateway.grpc.removeprefix("grpc://")) as channel:
        stream = RolloutIngestServiceStub(channel).SubmitMany.future(
            iter([messages.RolloutIngestServiceSubmitManyRequest(group=to_message(each)) for each in groups]),
            metadata=(("authorization", f"Bearer {AGENTS}"),),
        )
        while num_queued(gateway) < min(max_queued, len(groups) - NUM_SLOTS):
            time.sleep(0.01)
        (answer,) = post(gateway, GROUP | {"group_id": "1000"}).json()["results"]
        assert answer["outcome"] == refusal
        stream.cancel()


@pytest.mark.parametrize("max_queued", [256, 8])
def test_broker_that_goes_away_is_not_said_to_be_full(
    max_queued: int,
    broker: Broker,
    log: RunLog,
    broker_url: str,
    start_gateway: Callable[..., RunningGateway],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even to who waits since the run was full, or for room behind those."""
    monkeypatch.setattr(queues, "MAX_WAIT_SECONDS", 0.1)
    start_run(log)
    broker.command("ACL SETUSER", log.run, "on", ">secret", "~*", "&*", "+@all")
    gateway = start_gateway(
        redis_url=broker_url.replace("redis://", f"redis://{log.run}:secret@"),
        max_queued_groups=max_queued,
        slot_wait_seconds=0.3,
    )
    with grpc.insecure_channel(gateway.grpc.removeprefix("grpc://")) as channel:
        groups = [text_group("?", [("a", 1.0), ("b", 0.0)], group_id=str(number)) for number in range(16)]
        stream = RolloutIngestServiceStub(channel).SubmitMany.future(
            iter([messages.RolloutIngestServiceSubmitManyRequest(group=to_message(each)) for each in groups]),
            metadata=(("authorization", f"Bearer {AGENTS}"),),
        )
        while num_queued(gateway) < NUM_SLOTS:
            time.sleep(0.01)
        assert post(gateway, GROUP | {"group_id": "1000"}).status_code == 429
        broker.command("ACL SETUSER", log.run, "-evalsha")
        while "asympo_gateway_broker_errors_total 0.0" in httpx.get(f"{gateway.http}/metrics").text:
            time.sleep(0.01)
        assert post(gateway, GROUP | {"group_id": "1001"}).status_code == 503
        stream.cancel()


def test_broker_that_does_not_answer_is_not_said_to_be_full(
    broker: Broker, log: RunLog, start_gateway: Callable[..., RunningGateway]
) -> None:
    start_run(log)
    gateway = start_gateway(max_queued_groups=1, slot_wait_seconds=0.1)
    broker.command("CLIENT PAUSE", 60_000, "WRITE")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, gateway, GROUP)
        while not num_queued(gateway):
            time.sleep(0.01)
        assert post(gateway, GROUP | {"group_id": "2"}).status_code == 503
        broker.command("CLIENT UNPAUSE")
        assert first.result().status_code == 200
