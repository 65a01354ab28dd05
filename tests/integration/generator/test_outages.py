"""Brokers that die and rewards that misbehave."""

import json
from pathlib import Path

import pytest
from asympo.local.broker import LocalBroker
from asympo.tasks.config import TaskConfig

from tests.integration.generator.harness import LearnerSide, running, settings_for, until
from tests.integration.generator.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.asyncio

REWARD = """
import time

def reward(prompt, response_text):
    if response_text == "raise":
        raise ValueError("no number in here")
    if response_text == "hang":
        time.sleep(60)
    return float(response_text)
"""


async def test_finished_groups_outlive_a_broker_that_is_killed(
    own_broker: LocalBroker, run_name: str, tmp_path: Path
) -> None:
    learner = LearnerSide(url=own_broker.url, run=run_name, root=tmp_path / "root", lease_seconds=60.0)
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.flowing.clear()
    async with running(settings_for(learner), engine) as gen:
        await until(lambda: len(engine.in_flight) == 2)
        own_broker.kill()
        engine.flowing.set()
        await until(lambda: not engine.in_flight)
        own_broker.start()
        await until(lambda: len(learner.groups()) == learner.config.capacity, timeout_seconds=60)
        assert gen.status["groups_wasted"] == 0
        assert len(engine.salts) == learner.config.capacity, "nothing was sampled twice"
        await until(lambda: gen.generator.not_ready_reason is None)
    learner.close()


async def test_broker_that_is_away_from_the_start_on_is_counted(
    own_broker: LocalBroker, run_name: str, tmp_path: Path
) -> None:
    learner = LearnerSide(url=own_broker.url, run=run_name, root=tmp_path / "root")
    learner.create().publish(0, nll=2.0)
    own_broker.kill()
    async with running(settings_for(learner)) as gen:
        read = gen.process.registry.get_sample_value
        await until(lambda: (read("asympo_generator_broker_errors_total") or 0) >= 1)
        assert gen.generator.not_ready_reason is not None
        own_broker.start()
        await until(lambda: gen.generator.not_ready_reason is None)
    learner.close()


def scored_by_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskConfig:
    (tmp_path / "own_reward.py").write_text(REWARD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    rows = [json.dumps({"prompt": f"Say {index}.", "answer": str(index)}) for index in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    return TaskConfig(name="jsonl", path=str(tmp_path / "rows.jsonl"), scoring="python:own_reward:reward")


async def test_rewards_that_raise_or_hang_cost_their_response_only(
    broker_url: str, run_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = scored_by_python(tmp_path, monkeypatch)
    learner = LearnerSide(
        url=broker_url, run=run_name, root=tmp_path / "root", task_config=task, group_size=4
    )
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.texts = ["raise", "0.5", "hang", "1.5"]
    settings = settings_for(learner, allow_python=True, reward_timeout_seconds=5.0, max_groups_in_flight=1)
    async with running(settings, engine) as gen:
        [group, *_] = await until(learner.groups)
        assert [response.reward for response in group.responses] == [0.5, 1.5]
        assert gen.status["reward_failures"] >= 2
    learner.close()


async def test_group_without_two_scored_responses_goes_back_as_a_failure_of_its_prompt(
    broker_url: str, run_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = scored_by_python(tmp_path, monkeypatch)
    learner = LearnerSide(
        url=broker_url, run=run_name, root=tmp_path / "root", task_config=task, max_prompt_failures=2
    )
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.texts = ["raise", "1.0"]
    async with running(settings_for(learner, allow_python=True), engine) as gen:
        await until(lambda: learner.run_log.stats.read().prompts_set_aside >= 1)
        assert learner.groups() == []
        await until(lambda: gen.status["prompt_failures"] >= 2)
        assert not gen.task.done()
        engine.texts = ["0.0", "1.0"]
        await until(learner.groups)
    learner.close()
