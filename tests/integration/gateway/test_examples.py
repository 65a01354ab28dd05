"""The producers in examples/, as a person starts them."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from asympo.common.codec import WireLimits, decode_group
from asympo.common.rollout_log import RunLog
from asympo.testing.tiny_model import write_tiny_model

from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_ingest import StartGateway
from tests.integration.rollout_log.conftest import Learner, start_run

pytest.importorskip("openai")
importlib.import_module("transformers.models.auto.tokenization_auto")

PRODUCERS = Path(__file__).parents[3] / "examples" / "producers"


def run(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout


def texts(learner: Learner) -> list[tuple[str, list[tuple[str, float]]]]:
    groups = [
        decode_group(entry.payload, limits=WireLimits()) for entry in learner.consume(10, block_seconds=20)
    ]
    return [(group.prompt.text, [(each.text, each.reward) for each in group.responses]) for group in groups]


def test_example_of_a_file_appends_each_line_once(log: RunLog, start_gateway: StartGateway) -> None:
    learner = start_run(log)
    gateway = start_gateway(producers=None)
    for _ in range(2):
        out = run(sys.executable, PRODUCERS / "offline.py", PRODUCERS / "answers.jsonl", gateway.http)
        assert "0 refused" in out
    found = texts(learner)
    assert [prompt for prompt, _ in found] == [
        "Name a prime number.",
        "Name a mammal.",
        "Spell the number 4.",
    ]
    assert found[1][1] == [("A whale.", 1.0), ("A shark.", 0.0)]


def test_example_of_a_shell_script_appends_a_group(
    log: RunLog, start_gateway: StartGateway, tmp_path: Path
) -> None:
    learner = start_run(log)
    gateway = start_gateway(producers=None, model=str(write_tiny_model(tmp_path / "model")))
    assert '"outcome":"appended"' in run(PRODUCERS / "curl.sh", gateway.http)
    ((prompt, responses),) = texts(learner)
    assert "Which planet is the largest?" in prompt
    assert responses == [("Jupiter.", 1.0), ("The Sun.", 0.0)]


def test_example_of_an_agent_trains_through_its_base_url(log: RunLog, start_gateway: StartGateway) -> None:
    learner = start_run(log)
    door = FakeDoor()
    gateway = start_gateway(producers=None, doors=(door.address,))
    try:
        out = run(sys.executable, PRODUCERS / "agent.py", gateway.http, 2)
    finally:
        door.stop()
    assert out.count("earns") == 8
    entries = learner.consume(10, block_seconds=20)
    groups = [decode_group(entry.payload, limits=WireLimits()) for entry in entries]
    assert groups
    assert all(len(group.responses) == 4 for group in groups)
    assert all(bytes(group.prompt.token_ids).startswith(b"system:Add the numbers.") for group in groups)


@pytest.mark.parametrize("name", ["agent.py", "curl.sh", "offline.py"])
def test_example_is_short(name: str) -> None:
    assert len((PRODUCERS / name).read_text().splitlines()) <= 60
