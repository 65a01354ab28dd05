"""An environment of the `verifiers` package as it is, in a virtual environment that holds nothing of ours."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from asympo.common.codec import WireLimits, decode_group
from asympo.common.rollout_log import RunLog, RunState
from asympo.run.prepare.environment import PLAYER
from asympo.tasks.config import TaskConfig
from asympo.tasks.registry import load_task
from asympo.testing.tiny_model import write_tiny_model

from tests.conftest import require
from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_ingest import StartGateway
from tests.integration.rollout_log.conftest import start_run

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".cache" / "verifiers-tools" / "bin" / "python"
ENVIRONMENT = """
import verifiers.legacy as vf
from datasets import Dataset

class TwoTurns(vf.MultiTurnEnv):
    async def env_response(self, messages, state):
        return [vf.UserMessage(content="again")]

def is_even(completion):
    return float(int(completion[-1].content) % 2 == 0)

def length(completion):
    return float(len(completion))

def load_environment():
    rows = Dataset.from_list([{"question": "a number?", "answer": ""}])
    rubric = vf.Rubric(funcs=[is_even, length], weights=[1.0, 0.0])
    return TwoTurns(dataset=rows, rubric=rubric, max_turns=2, system_prompt="Count.")
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables with which the other interpreter finds `two-turns`, and nothing of ours."""
    require(PYTHON.exists(), "verifiers (make verifiers-tools)")
    (tmp_path / "two_turns.py").write_text(ENVIRONMENT)
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    return dict(os.environ) | {"PYTHONPATH": str(tmp_path)} | offline


def run(environment: dict[str, str], *command: object) -> "subprocess.CompletedProcess[str]":
    words = [str(word) for word in (PYTHON, *command)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_example_of_a_verifiers_environment_is_rewarded_by_its_rubric(
    log: RunLog, start_gateway: StartGateway, environment: dict[str, str]
) -> None:
    learner = start_run(log)
    door = FakeDoor()
    gateway = start_gateway(producers=None, doors=(door.address,))
    script = ROOT / "examples" / "producers" / "verifiers_env.py"
    try:
        done = run(environment, script, "two-turns", gateway.http)
    finally:
        door.stop()
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"row 0 earns \d: .*'is_even': .*'length': 3", done.stdout)) == 4
    (entry,) = learner.consume(10, block_seconds=20)
    group = decode_group(entry.payload, limits=WireLimits())
    assert bytes(group.prompt.token_ids) == b"system:Count.;user:a number?;assistant:"
    assert len(group.responses) == 4
    for each in group.responses:
        said = re.fullmatch(rb"(\d+;)user:again;assistant:((\d+);)", bytes(each.token_ids))
        assert said is not None
        assert each.reward == float(int(said[3]) % 2 == 0)
        assert sum(each.trained_token_mask or ()) == len(said[1]) + len(said[2])


@pytest.mark.timeout(400)
def test_environment_of_a_task_is_played_until_the_run_ends(
    log: RunLog, start_gateway: StartGateway, environment: dict[str, str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    done = run(environment, PLAYER, "rows", "two-turns", "{}", rows)
    assert done.returncode == 0, done.stderr
    config = TaskConfig(name="verifiers", environment="two-turns", path=str(rows))
    task = load_task(config)
    settings = config.model_dump(mode="json")
    learner = start_run(log, num_prompts=len(task), task=settings, num_epochs=1)
    door = FakeDoor()
    gateway = start_gateway(
        producers=None, doors=(door.address,), model=str(write_tiny_model(tmp_path / "m"))
    )
    sampling = json.dumps({"temperature": 1.0, "top_p": 1.0, "max_tokens": 16})
    command = [str(PYTHON), str(PLAYER), "play", "two-turns", "{}", gateway.http, sampling, "1"]
    player = subprocess.Popen(command, env=environment)
    try:
        (entry,) = learner.consume(10, block_seconds=60)
        log.state.set(RunState.FINISHED, fence=learner.fence)
        assert player.wait(60) == 0
    finally:
        player.kill()
        door.stop()
    assert {body["max_completion_tokens"] for body in door.bodies} == {16}
    group = decode_group(entry.payload, limits=WireLimits())
    assert (entry.group_id, len(group.responses)) == ("0-0", 4)
    for each in group.responses:
        assert each.function_values == {"is_even": each.reward, "length": 3.0, "num_turns": 2.0}
