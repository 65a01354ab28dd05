"""Environments as they are: both generations of `verifiers`, apart from all else, TRL's and OpenEnv's."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asympo.common.codec import WireLimits, decode_group
from asympo.common.records import RolloutGroup
from asympo.common.rollout_log import RunLog, RunState
from asympo.local.ports import free_port
from asympo.tasks.config import TaskConfig
from asympo.tasks.environments.player_command import player_command
from asympo.tasks.registry import load_task
from asympo.testing.tiny_model import write_tiny_model

from tests.conftest import require
from tests.integration.gateway.fake_door import FakeDoor
from tests.integration.gateway.test_ingest import StartGateway
from tests.integration.rollout_log.conftest import start_run

ROOT = Path(__file__).parents[3]
LEGACY = ROOT / ".cache" / "verifiers-tools" / "bin" / "python"
V1 = ROOT / ".cache" / "verifiers-v1-tools" / "bin" / "python"
OPENENV = ROOT / ".cache" / "openenv-tools" / "bin" / "python"
OPENENV_EXAMPLE = ROOT / "examples" / "openenv"
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
TASKSET = """
import verifiers.v1 as vf

__all__ = ["Sums"]

class Row(vf.TaskData):
    answer: str

class Calculator(vf.Toolset[vf.SharedToolsetConfig]):
    @vf.tool
    def add(self, left: int, right: int) -> int:
        'Adds two numbers.'
        return left + right

class Sum(vf.Task[Row]):
    @vf.reward(weight=2.0)
    async def is_even(self, trace):
        return float(int(trace.last_reply) % 2 == 0)

    @vf.metric
    async def sum(self, trace):
        return float(trace.tool_messages[-1].content)

class Sums(vf.Taskset[Sum]):
    def load(self):
        yield Sum(Row(prompt="2 + 3?", system_prompt="Add.", answer="5"), self.config.task)

    @classmethod
    def toolsets(cls, config):
        return [Calculator(vf.SharedToolsetConfig())]

if __name__ == "__main__":
    Calculator.run()
"""

FACTORY = """
class Counter:
    def __init__(self, step):
        self.step = step

    def reset(self, start, **row):
        self.total = start
        return f" Begin at {start}."

    def add(self, number: int) -> str:
        '''
        Adds a number.

        Args:
            number: What to add.
        '''
        self.total += number * self.step
        return f"total {self.total}"

    def get_reward(self):
        return float(self.total)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables with which the other interpreter finds the environments, and nothing of ours."""
    (tmp_path / "two_turns.py").write_text(ENVIRONMENT)
    (tmp_path / "sums.py").write_text(TASKSET)
    (tmp_path / "counter.py").write_text(FACTORY)
    (tmp_path / "starts.jsonl").write_text('{"prompt": "Count.", "start": 3}\n')
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    return dict(os.environ) | {"PYTHONPATH": str(tmp_path)} | offline


def run(environment: dict[str, str], *command: object) -> "subprocess.CompletedProcess[str]":
    require(Path(str(command[0])).exists(), "verifiers or OpenEnv (make verifiers-tools)")
    words = [str(word) for word in command]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


def test_example_of_a_verifiers_environment_is_rewarded_by_its_rubric(
    log: RunLog, start_gateway: StartGateway, environment: dict[str, str]
) -> None:
    learner = start_run(log)
    door = FakeDoor()
    gateway = start_gateway(producers=None, doors=(door.address,))
    script = ROOT / "examples" / "producers" / "verifiers_env.py"
    try:
        done = run(environment, LEGACY, script, "two-turns", gateway.http)
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


def play_to_the_end(
    python: Path,
    task: dict[str, Any],
    *,
    log: RunLog,
    open_gateway: Callable[[], str],
    folder: Path,
    env: dict[str, str],
) -> RolloutGroup:
    """The one group of an environment that is played as a task until its run ends."""
    rows = folder / "rows.jsonl"
    config = TaskConfig.model_validate(task | {"path": str(rows)})
    done = run(env, *player_command(python, config, "rows", str(rows)))
    assert done.returncode == 0, done.stderr
    settings = config.model_dump(mode="json")
    learner = start_run(log, num_prompts=len(load_task(config)), task=settings, num_epochs=1, group_size=2)
    sampling = json.dumps({"temperature": 1.0, "top_p": 1.0, "max_tokens": 16})
    command = player_command(python, config, "play", open_gateway(), sampling, "1")
    player = subprocess.Popen(command, env=env)
    try:
        (entry,) = learner.consume(10, block_seconds=240)
        log.state.set(RunState.FINISHED, fence=learner.fence)
        assert player.wait(60) == 0
    finally:
        player.kill()
    group = decode_group(entry.payload, limits=WireLimits())
    assert (group.group_id, len(group.responses)) == ("0-0", 2)
    return group


Play = Callable[[Path, dict[str, Any]], RolloutGroup]


@pytest.fixture
def door() -> Iterator[FakeDoor]:
    door = FakeDoor()
    yield door
    door.stop()


@pytest.fixture
def play(
    log: RunLog, start_gateway: StartGateway, environment: dict[str, str], tmp_path: Path, door: FakeDoor
) -> Play:
    def open_gateway() -> str:
        model = str(write_tiny_model(tmp_path / "m"))
        return start_gateway(producers=None, doors=(door.address,), model=model).http

    def start(python: Path, task: dict[str, Any]) -> RolloutGroup:
        return play_to_the_end(
            python, task, log=log, open_gateway=open_gateway, folder=tmp_path, env=environment
        )

    return start


@pytest.mark.timeout(400)
def test_legacy_environment_is_played_until_the_run_ends(play: Play, door: FakeDoor) -> None:
    group = play(LEGACY, {"name": "verifiers", "environment": "two-turns"})
    assert {body["max_completion_tokens"] for body in door.bodies} == {16}
    for each in group.responses:
        assert each.function_values == {"is_even": each.reward, "length": 3.0, "num_turns": 2.0}


@pytest.mark.timeout(400)
def test_taskset_is_played_with_its_tools_and_sessions_told_by_a_header(play: Play, door: FakeDoor) -> None:
    door.calls = {"name": "calculator_add", "arguments": '{"left": 2, "right": 3}'}
    group = play(V1, {"name": "verifiers", "environment": "sums"})
    assert {(body["max_tokens"], body["temperature"]) for body in door.bodies} == {(16, 1.0)}
    assert bytes(group.prompt.token_ids) == b"system:Add.;user:2 + 3?;assistant:"
    for each in group.responses:
        said = re.fullmatch(rb"(\d+\{.*add.*\};)tool:5;assistant:((\d+);)", bytes(each.token_ids))
        assert said is not None, bytes(each.token_ids)
        is_even = float(int(said[3]) % 2 == 0)
        assert (each.reward, each.function_values) == (2 * is_even, {"is_even": is_even, "sum": 5.0})
        assert sum(each.trained_token_mask or ()) == len(said[1]) + len(said[2])


def test_environment_of_a_factory_is_played_as_trl_would(play: Play, door: FakeDoor, tmp_path: Path) -> None:
    door.calls = {"name": "add", "arguments": '{"number": 2}'}
    task = {
        "name": "trl-environment",
        "environment": "counter:Counter",
        "environment_args": {"step": 2},
        "environment_rows": str(tmp_path / "starts.jsonl"),
    }
    group = play(Path(sys.executable), task)
    assert [tool["function"]["name"] for tool in door.bodies[0]["tools"]] == ["add"]
    assert bytes(group.prompt.token_ids) == b"user:Count. Begin at 3.;assistant:"
    for each in group.responses:
        assert b"tool:total 7;assistant:" in bytes(each.token_ids)
        assert (each.reward, each.function_values) == (7.0, {"Counter": 7.0})


@pytest.fixture
def openenv_server(environment: dict[str, str]) -> Iterator[str]:
    """Address of the example's server."""
    require(OPENENV.exists(), "OpenEnv (make verifiers-tools)")
    port = free_port()
    command = [str(OPENENV), str(OPENENV_EXAMPLE / "guess_server.py"), str(port)]
    with subprocess.Popen(command, env=environment) as server:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.kill()


@pytest.mark.timeout(400)
def test_example_of_an_openenv_client_is_played(
    openenv_server: str, play: Play, door: FakeDoor, environment: dict[str, str], tmp_path: Path
) -> None:
    environment["PYTHONPATH"] += f"{os.pathsep}{OPENENV_EXAMPLE}"
    first, *_ = (OPENENV_EXAMPLE / "rows.jsonl").read_text().splitlines()
    (tmp_path / "first.jsonl").write_text(first)
    door.calls = {"name": "guess", "arguments": json.dumps({"number": json.loads(first)["seed"]})}
    task = {
        "name": "trl-environment",
        "environment": "guess:Guess",
        "environment_args": {"base_url": openenv_server},
        "environment_rows": str(tmp_path / "first.jsonl"),
    }
    group = play(OPENENV, task)
    assert bytes(group.prompt.token_ids).endswith(b"Guess a number from 0 to 99.;assistant:")
    for each in group.responses:
        assert b"tool:right;assistant:" in bytes(each.token_ids)
        assert (each.reward, each.function_values) == (1.0, {"Guess": 1.0})
