"""Many groups and many callers, whatever happens to the gateway on the way."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from asympo.client import Client, RolloutGroup, text_group
from asympo.client.ways import ProducerRefused
from asympo.common.rollout_log import RunLog, RunState
from asympo.gateway import app, work
from asympo.local.ports import free_port

from tests.integration.gateway.conftest import AGENTS, RunningGateway
from tests.integration.gateway.test_ingest import post
from tests.integration.rollout_log.conftest import must_lease, start_run

StartGateway = Callable[..., RunningGateway]
GROUPS = [text_group("?", [("a" * 100, 1.0), ("b", 0.0)], group_id=str(number)) for number in range(30)]


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_gateway_that_is_away_is_waited_for(way: str, log: RunLog, start_gateway: StartGateway) -> None:
    learner = start_run(log, groups_per_step=16, max_groups_per_step=16)
    port, has_begun = free_port(), threading.Event()

    def groups() -> Iterator[RolloutGroup]:
        yield from GROUPS
        has_begun.set()

    with Client(f"{way}://127.0.0.1:{port}", token=AGENTS) as client, ThreadPoolExecutor(1) as pool:
        refused = pool.submit(client.submit_many, groups())
        assert has_begun.wait(20)
        start_gateway(**{f"{way}_port": port})
        assert refused.result(60) == []
    assert [entry.group_id for entry in learner.consume(40)] == [f"agents/{n}" for n in range(30)]


def test_requests_are_as_large_as_the_gateway_takes_them(log: RunLog, start_gateway: StartGateway) -> None:
    learner = start_run(log, groups_per_step=16, max_groups_per_step=16)
    gateway = start_gateway(max_body_bytes=2048)
    with Client(gateway.http, token=AGENTS) as client:
        assert client.submit_many(GROUPS) == []
        assert len(learner.consume(40)) == 30
        with pytest.raises(ProducerRefused, match="413"):
            client.submit("x" * 4096, [("a", 1.0), ("b", 0.0)])


def test_address_with_a_wrong_path_is_refused_in_a_sentence(log: RunLog, start_gateway: StartGateway) -> None:
    start_run(log)
    address = f"{start_gateway().http}/gateway"
    with Client(address, token=AGENTS) as client, pytest.raises(ProducerRefused, match=r"404.*Not Found"):
        client.submit_many(GROUPS)


def test_callers_that_wait_keep_no_renewal_waiting(
    log: RunLog, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_THREADS", 1)
    monkeypatch.setattr(work, "MAX_WAIT_SECONDS", 60.0)
    learner = start_run(log, lease_seconds=120.0)
    lease, *_ = [must_lease(log, holder="agents") for _ in range(8)]
    gateway = start_gateway()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, gateway, {"wait_seconds": 60}, path="/v1/work")
        while not log.broker.client.info("clients")["blocked_clients"]:
            time.sleep(0.01)
        # The other one waits for twice as long.
        renewed = httpx.post(
            f"{gateway.http}/v1/work/renew",
            json={"lease_tokens": [lease.token]},
            headers={"authorization": f"Bearer {AGENTS}"},
            timeout=15,
        )
        assert renewed.json() == {"lost": []}
        log.state.set(RunState.FINISHED, fence=learner.fence)
        assert waiting.result(60).status_code == 410
