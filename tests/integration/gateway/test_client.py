"""The client itself: addresses, and the run that it has joined."""

import asyncio
import dataclasses

import pytest
from asympo.client import AsyncClient, Client
from asympo.client.groups import text_group
from asympo.client.ways import ProducerRefused
from asympo.common.errors import BadSetting, RunConfigMismatch
from asympo.common.records import UnscoredResponse
from asympo.common.rollout_log import Broker, RunLog

from tests.integration.rollout_log.conftest import start_run


def test_client_of_a_broker_writes_nothing_into_another_run_of_that_name(
    log: RunLog, broker_url: str
) -> None:
    with Client(broker_url, run=log.run, producer="agents", max_wait_seconds=20) as client:
        start_run(log)
        client.submit("?", [("a", 1.0), ("b", 0.0)])
        log.state.delete()
        start_run(log)
        with pytest.raises(RunConfigMismatch, match="created anew since this client joined it"):
            client.submit("?", [("a", 1.0), ("b", 0.0)])
    assert log.stats.read().appended == 0


def test_client_of_a_broker_writes_no_group_that_every_learner_would_refuse(
    log: RunLog, broker_url: str
) -> None:
    start_run(log, group_size=128)
    few = text_group("?", [("a", 1.0), ("b", 0.0)] * 14, group_id=1)
    fitting = dataclasses.replace(few, unscored=(UnscoredResponse(text="c", reason="why"),) * 100)
    many = dataclasses.replace(few, unscored=fitting.unscored * 11)
    long = text_group("?" * (2**22 + 1), [("a", 1.0), ("b", 0.0)], group_id=1)
    with Client(broker_url, run=log.run, producer="agents", max_wait_seconds=20) as client:
        for group, why in ((many, "1100 unscored"), (long, "4194305 bytes")):
            with pytest.raises(ProducerRefused, match=why):
                client.submit(group)
        assert client.submit(fitting).is_in_log


def test_groups_that_are_submitted_at_once_share_their_first_connection(
    log: RunLog, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_run(log)
    opened, connect = list[str](), Broker.connect

    def count(address: str) -> Broker:
        opened.append(address)
        return connect(address)

    monkeypatch.setattr(Broker, "connect", count)

    async def submit_two() -> None:
        async with AsyncClient(broker_url, run=log.run, producer="agents") as client:
            groups = [text_group("?", [("a", 1.0), ("b", 0.0)], group_id=number) for number in (1, 2)]
            assert all(each.is_in_log for each in await asyncio.gather(*map(client.submit, groups)))

    asyncio.run(submit_two())
    assert opened == [broker_url]


@pytest.mark.parametrize("address", ["127.0.0.1:80", "ftp://x", "redis://127.0.0.1"])
def test_client_says_what_address_it_takes(address: str) -> None:
    with pytest.raises(BadSetting, match="address"):
        Client(address)
