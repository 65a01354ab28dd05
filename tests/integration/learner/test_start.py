"""What a learner says of its broker before anything is loaded."""

import signal
from pathlib import Path

import pytest

from tests.conftest import start_broker
from tests.integration.learner.process import LearnerProcess

CARELESS = {
    "no AOF": (
        ("--appendonly", "no"),
        "possibly the whole run's log, is lost when it stops",
    ),
    "everysec": (("--appendfsync", "everysec"), "about the last second of acknowledged groups may be lost"),
    "eviction": (
        ("--maxmemory-policy", "allkeys-lru"),
        "it deletes unread groups and run state",
    ),
}


@pytest.mark.parametrize("setting", CARELESS)
def test_learner_warns_at_its_start_what_a_careless_broker_may_lose(
    setting: str, broker_binary: str, run_name: str, tmp_path: Path, tiny_model: Path
) -> None:
    extra, lost = CARELESS[setting]
    careless = start_broker(broker_binary, tmp_path / "broker", *extra)
    learner = LearnerProcess(url=careless.url, run=run_name, root=tmp_path, model=tiny_model)
    try:
        learner.start()
        learner.until(lambda: learner.count("Broker: the broker"))
        assert learner.count("Broker: the broker") == 1
        assert learner.count(lost) == 1
        learner.until(lambda: (learner.get("/v1/status") or {}).get("broker", {}).get("warnings"))
        assert lost in learner.get("/v1/status")["broker"]["warnings"][0]
        learner.end(signal.SIGKILL)
    finally:
        careless.kill()
