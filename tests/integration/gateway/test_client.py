"""The client itself: addresses, and the run that it has joined."""

import pytest
from asympo.client import Client
from asympo.common.errors import BadSetting, RunConfigMismatch
from asympo.common.rollout_log import RunLog

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


@pytest.mark.parametrize("address", ["127.0.0.1:80", "ftp://x", "redis://127.0.0.1"])
def test_client_says_what_address_it_takes(address: str) -> None:
    with pytest.raises(BadSetting, match="address"):
        Client(address)
