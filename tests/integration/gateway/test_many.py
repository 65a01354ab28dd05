"""Many groups and many callers, whatever happens to the gateway on the way."""

import multiprocessing
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import httpx
import pytest
from asympo.client import Client, RolloutGroup, text_group
from asympo.client.blocking import ClientUnusable
from asympo.client.ways import ProducerRefused
from asympo.common.rollout_log import RunLog, RunState
from asympo.gateway import app, work
from asympo.local.ports import free_port

from tests.integration.gateway.conftest import AGENTS, RunningGateway, blocked
from tests.integration.gateway.test_ingest import WAYS, client_of, post
from tests.integration.rollout_log.conftest import must_lease, start_run

StartGateway = Callable[..., RunningGateway]
GROUPS = [text_group("?", [("a" * 100, 1.0), ("b", 0.0)], group_id=str(number)) for number in range(30)]


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_gateway_that_is_away_is_waited_for(way: str, log: RunLog, start_gateway: StartGateway) -> None:
    learner = start_run(log, groups_per_step=16, max_groups_per_step=16)
    port, has_begun = free_port(), threading.Event()

    def groups() -> Iterator[RolloutGroup]:
        has_begun.set()
        yield from GROUPS

    with Client(f"{way}://127.0.0.1:{port}", token=AGENTS) as client, ThreadPoolExecutor(1) as pool:
        refused = pool.submit(client.submit_many, groups())
        assert has_begun.wait(20)
        start_gateway(**{f"{way}_port": port})
        assert refused.result(60) == []
    assert [entry.group_id for entry in learner.consume(40)] == [f"agents/{n}" for n in range(30)]


@pytest.mark.parametrize("way", WAYS)
def test_groups_are_sent_while_their_source_works_and_before_its_error_is_raised(
    way: str, log: RunLog, broker_url: str, start_gateway: StartGateway
) -> None:
    learner = start_run(log)
    with client_of(start_gateway(), way, log, broker_url) as client:

        def groups() -> Iterator[RolloutGroup]:
            yield text_group("?", [("a", 1.0), ("b", 0.0)], group_id=1)
            deadline = time.monotonic() + 30
            while not log.stats.read().appended:
                assert time.monotonic() < deadline, "the group is held back"
                time.sleep(0.01)
            assert client.submit("?", [("a", 1.0), ("b", 0.0)], group_id=2).outcome == "appended"
            yield text_group("?", [("a", 1.0), ("", 0.0)], group_id=3)
            yield text_group("?", [("a", 1.0), ("b", 0.0)], group_id=4)
            raise KeyError("no more rows")

        with pytest.raises(KeyError, match="no more rows") as raised:
            client.submit_many(groups())
    assert [entry.group_id for entry in learner.consume(10)] == [f"agents/{number}" for number in (1, 2, 4)]
    (note,) = raised.value.__notes__
    assert re.match("Not taken before that: (agents/)?3: invalid .*empty", note)


def test_client_that_is_closed_or_forked_keeps_nobody_waiting() -> None:
    has_begun = threading.Event()

    def groups() -> Iterator[RolloutGroup]:
        yield GROUPS[0]
        has_begun.set()
        yield GROUPS[1]

    def use_in_fork(client: Client) -> None:
        try:
            client.submit("?", [("a", 1.0)])
        except ClientUnusable as error:
            sys.exit("does not work in its fork" not in str(error))

    ends: SimpleQueue[Exception] = SimpleQueue()

    def submit_again(client: Client) -> None:
        for _ in range(50):
            try:
                client.submit(GROUPS[0])
            except Exception as error:  # noqa: BLE001  looked at below
                ends.put(error)

    with Client(f"http://127.0.0.1:{free_port()}") as client, ThreadPoolExecutor(1) as pool:
        fork = multiprocessing.get_context("fork").Process(target=use_in_fork, args=(client,), daemon=True)
        fork.start()
        fork.join(30)
        assert fork.exitcode == 0
        waiting = pool.submit(client.submit_many, groups())
        assert has_begun.wait(20)
        for _ in range(4):
            threading.Thread(target=submit_again, args=(client,), daemon=True).start()
        client.close()
        with pytest.raises(ClientUnusable, match="closed during the call"):
            waiting.result(30)
        assert {type(ends.get(timeout=30)) for _ in range(4 * 50)} == {ClientUnusable}
        with pytest.raises(ClientUnusable, match="the client is closed"):
            client.submit_many(GROUPS)


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
        earlier = blocked(log)
        waiting = pool.submit(post, gateway, {"wait_seconds": 60}, path="/v1/work")
        while blocked(log) <= earlier:
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
