"""Leases in, scored groups out, against a real broker."""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from asympo.common.errors import BadSetting, EngineBroken, RunConfigMismatch
from asympo.common.records import FinishReason
from asympo.common.rollout_log import Lease, Refused, RunState
from asympo.common.rollout_log.leases import Leases
from asympo.engines.base import DoorTerms
from asympo.generator.core import NotReady
from asympo.generator.work import worker
from asympo.local.ports import free_port
from asympo.tasks.config import TaskConfig
from fastapi import FastAPI

from tests.integration.generator.harness import LearnerSide, running, settings_for, start, until
from tests.integration.generator.scripted_engine import EOS, ScriptedEngine
from tests.integration.rollout_log.conftest import lose

pytestmark = pytest.mark.asyncio


async def test_worker_appends_scored_groups_until_capacity_is_used_up(
    learner: LearnerSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner.create().publish(0, nll=2.0)
    # One group at a time, and no time-out after which it would ask again.
    settings = settings_for(learner, max_groups_in_flight=1, slot_wait_seconds=60.0)
    acquire, asked = Leases.acquire, list[str]()

    def asks(leases: Leases, *, holder: str, **more: Any) -> Lease | Refused:
        asked.append(holder)
        return acquire(leases, holder=holder, **more)

    monkeypatch.setattr(Leases, "acquire", asks)
    async with running(settings) as gen:
        await until(lambda: len(learner.groups()) == learner.config.capacity)
        group = learner.groups()[0]
        assert [r.token_ids for r in group.responses] == [
            (*ScriptedEngine.tokenizer.encode(text), EOS) for text in ("7", "8")
        ]
        assert "Answer with only the number." in group.prompt.text
        assert all(r.reward in (0.0, 1.0) for r in group.responses)
        await until(lambda: gen.status["waiting_for"] == "no_capacity")
        assert len(asked) == learner.config.capacity, "the last append said that no slot was free"
        learner.free_all()
        await until(lambda: len(learner.groups()) > learner.config.capacity)
    assert gen.status["groups_appended"] == len(learner.groups())
    assert learner.run_log.stats.read().leases == 0


async def test_worker_waits_for_the_run_and_its_first_policy(learner: LearnerSide) -> None:
    async with running(settings_for(learner)) as gen:
        await until(lambda: gen.process.http_port)
        assert gen.status["state"] == "starting"
        learner.create()
        await until(lambda: gen.status["state"] == "waiting_for_policy")
        assert gen.engine.started_on == Path("no-such-model")
        assert learner.run_log.stats.read().leases == 0
        learner.publish(0, nll=2.0)
        await until(lambda: learner.groups())
        assert gen.status["last_reload"]["verdict"] == "proved"


async def test_worker_reports_its_presence_and_says_goodbye(learner: LearnerSide) -> None:
    learner.create().publish(3, nll=2.0)
    async with running(settings_for(learner)):
        present = await until(
            lambda: [g for g in learner.run_log.presence.generators() if g.get("policy_step") == 3]
        )
        assert present[0]["holder"] == "generator-a"
        assert present[0]["rss_bytes"] > 0
        wanted = {"state", "tokens_per_second", "groups_in_flight", "responses_total", "last_reload"}
        wanted |= {"reloads", "probe_failures", "requests_lost", "groups_appended", "groups_wasted"}
        assert wanted <= set(present[0])
    assert learner.run_log.presence.generators() == []


async def test_worker_gives_overlong_responses_their_own_reward(
    make_learner: Callable[..., LearnerSide],
) -> None:
    learner = make_learner(overlong_reward=-0.5)
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.finish_reason = FinishReason.LENGTH
    async with running(settings_for(learner), engine):
        await until(lambda: learner.groups())
    responses = learner.groups()[0].responses
    assert [(r.reward, r.finish_reason) for r in responses] == [(-0.5, FinishReason.LENGTH)] * 2
    assert EOS not in responses[0].token_ids


async def test_worker_survives_one_failing_generation(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.errors = [RuntimeError("one bad kernel")]
    async with running(settings_for(learner), engine) as gen:
        await until(lambda: len(learner.groups()) == learner.config.capacity)
        assert gen.status["engine_failures"] == 1
    assert learner.run_log.stats.read().prompt_failures == 1


async def test_worker_ends_the_process_when_the_engine_keeps_failing(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.errors = [RuntimeError(f"kernel {index}") for index in range(50)]
    gen = start(settings_for(learner, max_engine_failures=4), engine)
    # Two are in flight: the fifth may fail while the fourth is handed back.
    with pytest.raises(EngineBroken, match=r"[45] generations in a row failed"):
        await asyncio.wait_for(gen.task, 40)
    stats = learner.run_log.stats.read()
    assert stats.leases == 0
    assert stats.prompt_failures == 1, "only the first of a row of failures is charged to its prompt"
    assert engine.num_closed == 1


async def test_worker_aborts_the_request_of_a_lost_lease(
    make_learner: Callable[..., LearnerSide],
) -> None:
    learner = make_learner(lease_seconds=0.6, max_lease_seconds=1.2)
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.flowing.clear()
    async with running(settings_for(learner, max_groups_in_flight=1), engine) as gen:
        await until(lambda: engine.aborted)
        await until(lambda: gen.status["groups_wasted"] == 1)
        assert learner.groups() == []
        assert gen.status["requests_lost"] == 0, "no reload had to do with it"
        engine.flowing.set()
        await until(lambda: learner.groups())
    assert learner.run_log.stats.read().lease_expiries >= 1


async def test_drain_finishes_what_is_in_flight(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.flowing.clear()
    gen = start(settings_for(learner), engine)
    await until(lambda: len(engine.in_flight) == 2)
    gen.stop.set("test")
    await until(lambda: gen.status["state"] == "draining")
    assert gen.generator.not_ready_reason == "stopping"
    engine.flowing.set()
    await asyncio.wait_for(gen.task, 40)
    assert len(learner.groups()) == 2
    assert learner.run_log.stats.read().leases == 0
    assert engine.num_closed == 1


async def test_drain_hands_back_what_is_not_done_at_the_deadline(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.flowing.clear()
    gen = start(settings_for(learner, drain_seconds=0.3), engine)
    await until(lambda: len(engine.in_flight) == 2)
    gen.stop.set("test")
    await asyncio.wait_for(gen.task, 40)
    stats = learner.run_log.stats.read()
    assert (stats.leases, stats.reissue, stats.appended) == (0, 2, 0)
    assert stats.prompt_failures == 0, "a drained holder is no fault of the prompt"
    assert len(engine.aborted) == 2


async def test_worker_idles_after_the_run_and_works_as_soon_as_it_goes_on(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    # No time-out after which it would ask again.
    async with running(settings_for(learner, slot_wait_seconds=60.0)) as gen:
        await until(lambda: len(learner.groups()) == learner.config.capacity)
        learner.run_log.state.set(RunState.FINISHED, fence=learner.fence)
        await until(lambda: gen.status["state"] == "stopped")
        assert not gen.task.done()
        learner.free_all()
        await until(lambda: gen.status["waiting_for"] == "run_ended")
        learner.run_log.state.set(RunState.RUNNING, fence=learner.fence)
        # The broker's own advice is to ask again after half a minute.
        await until(lambda: len(learner.groups()) > learner.config.capacity, timeout_seconds=20)


@pytest.mark.parametrize("is_created_anew", [False, True])
async def test_worker_ends_when_its_run_was_deleted(
    learner: LearnerSide, is_created_anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MISSING_SECONDS", 1.0)
    learner.create().publish(3, nll=2.0)
    gen = start(settings_for(learner))
    await until(lambda: len(learner.groups()) == learner.config.capacity)
    learner.run_log.state.delete()
    if is_created_anew:
        learner.create()
    said = "and created anew since" if is_created_anew else "was deleted since this generator joined it"
    with pytest.raises(RunConfigMismatch, match=said):
        await asyncio.wait_for(gen.task, 40)


class EngineThatLoads(ScriptedEngine):
    """Starts once it is told that its weights are there."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded = asyncio.Event()

    async def start(self, *, model_path: Path) -> None:
        await super().start(model_path=model_path)
        await self.loaded.wait()


@pytest.mark.parametrize("what", ["loads", "is paused", "was paused"])
async def test_worker_leases_nothing_of_a_run_created_anew_while_it_loaded_or_was_paused(
    learner: LearnerSide, what: str
) -> None:
    learner.create().publish(3, nll=2.0)
    engine = EngineThatLoads()
    gen = start(settings_for(learner), engine)
    await until(lambda: engine.started_on)
    if what != "loads":
        engine.loaded.set()
        await until(lambda: len(learner.groups()) == learner.config.capacity)
        gen.generator.pause()
    learner.run_log.state.delete()
    learner.create().publish(4, nll=2.0)
    engine.loaded.set()
    if what == "was paused":
        gen.generator.resume()
    with pytest.raises(RunConfigMismatch, match="and created anew since"):
        await asyncio.wait_for(gen.task, 40)
    assert learner.run_log.stats.read().leases_granted == 0


@pytest.mark.parametrize("has_id", [False, True])
async def test_worker_waits_for_each_loss_of_its_run_until_its_learner_has_announced_its_policy_again(
    learner: LearnerSide, has_id: bool
) -> None:
    learner.create().publish(3, nll=2.0)
    key, command = learner.run_log.access.key, learner.broker.command
    if not has_id:
        command("HDEL", key("learner"), "run_id")
    async with running(settings_for(learner)) as gen:
        await until(lambda: len(learner.groups()) == learner.config.capacity)
        run_id, worker = learner.run_log.state.run_id(), gen.generator.parts.worker
        # Its config was created again, and its id is not there yet; or it has none to be told by.
        command("DEL", key("learner"))
        await until(lambda: worker._missing_since)
        learner.run_log.state.create_again(run_id=run_id)
        await worker._refuse_another_run()
        learner.create().publish(4, nll=2.0)
        learner.free_all()
        await until(lambda: gen.status["waiting_for"] == "no_capacity")
        assert worker._missing_since is None


async def test_worker_waits_for_a_run_that_the_broker_lost(learner: LearnerSide) -> None:
    """Its learner creates it again, and says only a moment later which policy there is."""
    learner.create().publish(3, nll=2.0)
    async with running(settings_for(learner)) as gen:
        await until(lambda: len(learner.groups()) == learner.config.capacity)
        run_id = learner.run_log.state.run_id()
        lose(learner.run_log)
        await until(lambda: gen.status["waiting_for"] == "not_started")
        learner.run_log.state.create_again(run_id=run_id)
        learner.create().publish(4, nll=2.0)
        await until(lambda: len(learner.groups()) == learner.config.capacity)


async def test_worker_ends_with_the_run_when_told_so(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    gen = start(settings_for(learner, exit_when_run_ends=True))
    await until(lambda: len(learner.groups()) == learner.config.capacity)
    learner.run_log.state.set(RunState.FINISHED, fence=learner.fence)
    await asyncio.wait_for(gen.task, 40)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task_digest": "f" * 64}, "created with task_digest ffffffffffff…, here it is .*same task file"),
        ({"num_prompts": 3}, "created with num_prompts 3, here it is 3"),
        ({"tokenizer_digest": "e" * 64}, "created with tokenizer_digest eeeeeeeeeeee…, here it is"),
        ({"sampling": {"beams": 4}}, r"samples with settings this build does not know \(beams\)"),
        ({"task": {"name": "chess"}}, "asks for a task this build does not know"),
    ],
)
async def test_generator_refuses_to_join_a_run_it_would_answer_differently(
    make_learner: Callable[..., LearnerSide], changes: dict[str, object], sentence: str
) -> None:
    learner = make_learner(**changes)
    learner.create().publish(0, nll=2.0)
    gen = start(settings_for(learner))
    with pytest.raises(RunConfigMismatch, match=sentence):
        await asyncio.wait_for(gen.task, 40)
    assert learner.run_log.stats.read().leases_granted == 0


class EngineWithDoor(ScriptedEngine):
    """Behind its door is one request, which flows like the others."""

    async def build_door(self, terms: DoorTerms) -> FastAPI:
        async def answer() -> str:
            self.in_flight["door"] = asyncio.Event()
            await self.flowing.wait()
            return "answered"

        app = FastAPI()
        app.add_api_route("/v1/turn", answer, methods=["POST"])
        return app


async def test_drain_answers_what_was_asked_outside_the_log_and_takes_no_more(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine, port = EngineWithDoor(), free_port()
    gen = start(settings_for(learner, drain_seconds=60.0, door={"port": port}), engine)
    await until(lambda: gen.status["policy_step"] == 0)
    await until(lambda: len(learner.groups()) == learner.config.capacity)
    engine.flowing.clear()
    ask = functools.partial(gen.generator.generate, [[5]], num_samples=1, changes={})
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
        turn = asyncio.create_task(http.post("/v1/turn"))
        asked = asyncio.create_task(ask(request_id="asked"))
        await until(lambda: {"door", "asked.0"} <= engine.in_flight.keys())
        draining = asyncio.create_task(gen.generator.drain())
        await until(lambda: gen.generator.outside.is_closed)
        refused = await http.post("/v1/turn")
        assert (refused.status_code, "is draining: ask another" in refused.text) == (503, True)
        with pytest.raises(NotReady, match="is draining: ask another"):
            await ask(request_id="late")
        assert not draining.done()
        engine.flowing.set()
        assert (await turn).text == '"answered"'
        assert (await asked).samples
    await asyncio.wait_for(gen.task, 40)


async def test_worker_of_an_environment_leaves_the_prompts_to_it_and_ends_as_others_do(
    make_learner: Callable[..., LearnerSide], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "MISSING_SECONDS", 1.0)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    task = TaskConfig(name="verifiers", environment="e", path=str(tmp_path / "rows.jsonl"))
    learner = make_learner(task_config=task).create()
    learner.publish(0, nll=2.0)
    with pytest.raises(BadSetting, match=r"asks the policy through doors: give door\.port"):
        await start(settings_for(learner)).task
    engine = EngineWithDoor()
    async with running(settings_for(learner, door={"port": free_port()}), engine) as gen:
        learner.publish(1, nll=2.0)
        await until(lambda: gen.status["policy_step"] == 1)
        assert gen.status["waiting_for"] is None
        # What an autoscaler goes by would otherwise be 0, however busy it is.
        assert gen.process.registry.get_sample_value("asympo_generator_max_groups_in_flight") == 0
        learner.run_log.state.set(RunState.FINISHED, fence=learner.fence)
        await until(lambda: gen.status["state"] == "stopped")
        leaving = start(settings_for(learner, door={"port": free_port()}, exit_when_run_ends=True), engine)
        await asyncio.wait_for(leaving.task, 40)
        learner.run_log.state.set(RunState.RUNNING, fence=learner.fence)
        await until(lambda: gen.status["state"] == "generating")
        assert (learner.groups(), engine.in_flight, learner.run_log.stats.read().leases) == ([], {}, 0)
        learner.run_log.state.delete()
        with pytest.raises(RunConfigMismatch, match="was deleted since this generator joined it"):
            await asyncio.wait_for(gen.task, 40)
