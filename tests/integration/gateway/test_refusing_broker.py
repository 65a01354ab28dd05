"""A broker that turns the gateway away for a time, as while its users are renewed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asympo.common.rollout_log import Broker, RunLog
from asympo.testing.tiny_model import write_tiny_model

from tests.integration.gateway.conftest import RunningGateway
from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_ingest import GROUP, NUM_SUMS, post
from tests.integration.gateway.test_sessions import complete, outcome, say
from tests.integration.rollout_log.conftest import start_run

StartGateway = Callable[..., RunningGateway]


@pytest.fixture
def start_as_user(
    broker: Broker, broker_url: str, run_name: str, start_gateway: StartGateway
) -> StartGateway:
    """Starts gateways whose user is named like the run."""
    broker.command("ACL SETUSER", run_name, "on", ">secret", "~*", "&*", "+@all")
    url = broker_url.replace("redis://", f"redis://{run_name}:secret@")

    def start(**changes: Any) -> RunningGateway:
        return start_gateway(redis_url=url, **changes)

    return start


def test_groups_go_in_again_once_the_broker_takes_us_back(
    broker: Broker, log: RunLog, start_as_user: StartGateway
) -> None:
    start_run(log)
    gateway = start_as_user(slot_wait_seconds=0.1)
    broker.command("ACL SETUSER", log.run, "-evalsha")
    refused = post(gateway, GROUP)
    assert (refused.status_code, "log acl" in refused.text) == (503, True)
    broker.command("ACL SETUSER", log.run, "+evalsha")
    assert post(gateway, GROUP).json()["results"][0]["outcome"] == "appended"


def test_session_group_ends_whatever_its_broker_says(
    broker: Broker, log: RunLog, start_as_user: StartGateway, tmp_path: Path
) -> None:
    start_run(log, num_prompts=NUM_SUMS, task={"name": "addition"})
    door = FakeDoor()
    gateway = start_as_user(doors=(door.address,), model=str(write_tiny_model(tmp_path / "model")))
    sessions = post(gateway, {}, path="/rl/start_session").json()["sessions"]
    broker.command("ACL SETUSER", log.run, "-evalsha")
    for session in sessions:
        say(session, "a")
        complete(gateway, session, 1.0)
    assert outcome(gateway, sessions[0])["outcome"] == "failed"
    door.stop()
