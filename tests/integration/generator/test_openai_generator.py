"""A generator whose engine is a server: text-only groups, and weights that stay as they are."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asympo.common.clock import SystemClock
from asympo.common.errors import BadSetting
from asympo.common.lifecycle import StopSignal
from asympo.generator.app import GeneratorProcess
from asympo.generator.settings import GeneratorSettings
from asympo.tasks.tokenizer_digest import tokenizer_digest
from asympo.testing.tiny_model import load_tiny_tokenizer, write_tiny_model

from tests.integration.engines.fake_server import FakeServer
from tests.integration.generator.harness import LearnerSide, settings_for, until

pytest.importorskip("openai")
pytestmark = pytest.mark.asyncio


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def server() -> Iterator[FakeServer]:
    made = FakeServer()
    yield made
    made.stop()


def settings_of(learner: LearnerSide, server: FakeServer) -> GeneratorSettings:
    return settings_for(learner, engine="openai", openai={"base_url": server.url, "max_retries": 0})


def learner_of(make_learner: Callable[..., LearnerSide], model: Path, **changes: Any) -> LearnerSide:
    digest = tokenizer_digest(load_tiny_tokenizer(model))
    values = {"max_staleness": 1, "model": str(model), "tokenizer_digest": digest} | changes
    return make_learner(**values).create()


def process_of(settings: GeneratorSettings) -> tuple[GeneratorProcess, StopSignal]:
    stop = StopSignal()
    return GeneratorProcess(settings=settings, stop=stop, clock=SystemClock()), stop


async def test_generator_of_a_server_appends_texts_and_says_that_it_keeps_its_weights(
    make_learner: Callable[..., LearnerSide], model: Path, server: FakeServer
) -> None:
    learner = learner_of(make_learner, model)
    server.choice = {"finish_reason": "stop", "stop_reason": "\n"}
    process, stop = process_of(settings_of(learner, server))
    task = asyncio.create_task(process.run())
    await until(lambda: process.generator.parts)
    learner.publish(0)
    groups = await until(learner.groups)
    learner.publish(1)
    learner.free_all()
    assert len(await until(lambda: found if len(found := learner.groups()) > len(groups) else None))

    def reported() -> Any:
        (present,) = learner.run_log.presence.generators()
        return present if present["tokens_total"] >= 4 else None

    present = await until(reported)
    assert (present["policy_step"], present["can_reload"], present["state"]) == (0, False, "generating")
    # By this the alerts know that it has nothing to reload.
    assert process.registry.get_sample_value("asympo_generator_policy_step") == -1
    stop.set("test")
    await task
    for response in groups[0].responses:
        assert (response.token_ids, response.text, response.stop_string) == ((), "12", "\n")
        assert response.reward in (0.0, 1.0)
    assert groups[0].prompt.token_ids


async def test_generator_outlives_a_server_that_is_away_for_a_while(
    make_learner: Callable[..., LearnerSide], model: Path, server: FakeServer
) -> None:
    learner = learner_of(make_learner, model)
    process, stop = process_of(settings_of(learner, server))
    task = asyncio.create_task(process.run())
    await until(lambda: process.generator.parts)
    learner.publish(0)
    await until(learner.groups)
    server.failures = [(503, "restarting")] * 3
    before = len(learner.groups())
    learner.free_all()
    await until(lambda: not server.failures and len(learner.groups()) > before)
    stop.set("test")
    await task
    ids = [group.group_id for group in learner.groups()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("limit", [{"max_staleness": 0}, {"max_generation_staleness": 3}])
async def test_generator_that_keeps_its_weights_refuses_a_run_of_fresh_ones(
    make_learner: Callable[..., LearnerSide], model: Path, server: FakeServer, limit: dict[str, int]
) -> None:
    learner = learner_of(make_learner, model, **limit)
    process, _ = process_of(settings_of(learner, server))
    name, value = next(iter(limit.items()))
    with pytest.raises(BadSetting, match=rf"{name} is {value}\), and this engine keeps the weights"):
        await process.run()
    assert not server.asked
