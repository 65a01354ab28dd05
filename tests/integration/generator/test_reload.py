"""Reloads in flight: proved, held, failed, fallen back."""

import asyncio
import functools
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from asympo.common.checkpoints.opening import open_policies
from asympo.common.clock import SystemClock
from asympo.common.errors import EngineBroken, ReloadFailed
from asympo.common.lifecycle import StopSignal
from asympo.common.trained_ids import TrainedIds
from asympo.generator.core import NotReady
from asympo.learner.log.session import LogSession
from asympo.learner.progress import Progress

from tests.integration.generator.harness import LearnerSide, Running, running, settings_for, start, until
from tests.integration.generator.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.asyncio


def torn_policy(learner: LearnerSide, *, step: int, ending: bytes = b"!") -> tuple[Path, bytes]:
    """A visible policy whose last byte is replaced: the file, and what it should hold."""
    visible = learner.store
    learner.store = open_policies(visible.path.parent / "elsewhere", "run")
    ref = learner.publish(step, nll=3.0, announce=False)
    learner.store = visible
    weights = ref.path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + ending)
    ref.path.rename(visible.path / ref.name)
    learner.announce(ref)
    return visible.path / ref.name / weights.name, whole


async def ask(gen: Running) -> tuple[int, int]:
    """Steps of the policies that a question outside the log is answered by, first and last."""
    answer = await gen.generator.generate([[5]], num_samples=1, changes={}, request_id="asked")
    assert answer.first_policy
    assert answer.last_policy
    return answer.first_policy.step, answer.last_policy.step


async def test_reload_is_proved_with_requests_in_flight_and_loses_none(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    async with running(settings_for(learner), engine) as gen:
        await until(lambda: len(learner.groups()) == 4)
        engine.flowing.clear()
        learner.free_all()
        await until(lambda: len(engine.in_flight) == 2)
        learner.publish(1, nll=3.0)
        last = await until(lambda: (gen.status["last_reload"] or {}).get("step") == 1 and gen.status)
        assert last["last_reload"]["verdict"] == "proved"
        assert last["last_reload"]["in_flight"] == 4
        engine.flowing.set()
        await until(lambda: len(learner.groups()) >= 6)
        assert gen.status["requests_lost"] == 0
        assert engine.aborted == []
        await until(lambda: len(set(engine.salts)) == 2)


async def test_reload_holds_groups_until_the_verdict(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.flowing.clear()
    async with running(settings_for(learner), engine) as gen:
        await until(lambda: len(engine.in_flight) == 2)
        asked = asyncio.create_task(ask(gen))
        await until(lambda: len(engine.in_flight) == 3)
        engine.probing.clear()
        learner.publish(1, nll=3.0)
        await until(lambda: len(engine.reloaded) == 1)
        engine.flowing.set()
        await until(lambda: gen.status["groups_held"] == 3)
        await asyncio.sleep(0.3)
        assert learner.groups() == [], "no verdict yet"
        assert gen.status["policy_step"] == 0
        engine.probing.set()
        await until(lambda: len(learner.groups()) >= 2)
        assert gen.status["policy_step"] == 1
        assert await asked == (0, 1), "its last tokens are of the new policy"


async def test_stale_engine_gets_the_policy_marked_bad_and_returns_to_the_last_one(
    learner: LearnerSide,
) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.flowing.clear()
    async with running(settings_for(learner), engine) as gen:
        await until(lambda: len(engine.in_flight) == 2)
        engine.probing.clear()
        engine.is_stale = True
        learner.publish(1, nll=3.0)
        await until(lambda: len(engine.reloaded) == 1)
        engine.flowing.set()
        await until(lambda: gen.status["groups_held"] == 2)
        engine.probing.set()
        [bad] = await until(learner.run_log.policies.bad)
        assert (bad.step, bad.holder) == (1, "generator-a")
        assert "policy 1 failed: 1 values read back, differ in 1 layers, w" in bad.reason
        assert gen.status["policy_step"] == 0
        assert gen.status["probe_failures"] == 1
        assert gen.status["groups_handed_back"] == 2
        # max_staleness is 0: nothing is leased until a good policy is there.
        engine.is_stale = False
        learner.publish(2, nll=3.0)
        await until(lambda: gen.status["policy_step"] == 2)
        await until(lambda: len(learner.groups()) == learner.config.capacity)
    assert learner.run_log.stats.read().prompt_failures == 0
    assert [name[:13] for name in engine.reloaded] == [f"step-0000000{step}" for step in (1, 0, 2)]


async def test_bad_policy_stops_at_the_first_generator_of_a_fleet(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engines = [ScriptedEngine() for _ in range(3)]

    def tried(step: int) -> int:
        return sum(f"step-{step:08d}-f0001" in engine.reloaded for engine in engines)

    async with AsyncExitStack() as fleet:
        gens = [
            await fleet.enter_async_context(running(settings_for(learner, holder=f"g{number}"), engine))
            for number, engine in enumerate(engines)
        ]
        await until(lambda: all(gen.status["policy_step"] == 0 for gen in gens))
        for engine in engines:
            engine.is_stale = True
        learner.publish(1, nll=3.0)
        await until(learner.run_log.policies.bad)
        for engine in engines:
            engine.is_stale = False
            engine.probing.clear()
        # One that died while it was the first: its turn expires.
        claim = functools.partial(learner.run_log.swaps.claim, "dead", step=2, fence=1, share=1, seconds=2)
        await until(claim)
        learner.publish(2, nll=3.0)
        await until(lambda: claim() and [gen.status["loading_step"] for gen in gens] == [2] * 3)
        assert tried(2) == 0, "it is the dead one's turn"
        await until(lambda: tried(2))
        assert not claim()
        await until(lambda: [gen.status["loading_step"] for gen in gens] == [2] * 3)
        assert tried(2) == 1, "it is not proved yet"
        for engine in engines:
            engine.probing.set()
        await until(lambda: all(gen.status["policy_step"] == 2 for gen in gens))
    assert (tried(1), tried(2)) == (1, 3)


async def test_failed_reload_gives_up_what_is_still_being_sampled(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    engine.flowing.clear()
    async with running(settings_for(learner), engine) as gen:
        await until(lambda: len(engine.in_flight) == 2)
        asked = asyncio.create_task(ask(gen))
        await until(lambda: len(engine.in_flight) == 3)
        engine.is_stale = True
        learner.publish(1, nll=3.0)
        await until(learner.run_log.policies.bad)
        assert len(engine.aborted) == 2
        assert gen.status["requests_lost"] == 4
        assert learner.groups() == []
        engine.flowing.set()
        with pytest.raises(NotReady, match="failed its proof: ask again"):
            await asked


async def test_generator_ends_when_the_fallback_fails_as_well(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    gen = start(settings_for(learner), engine)
    await until(lambda: gen.status["policy_step"] == 0)
    engine.is_off = True
    learner.publish(1, nll=3.0)
    with pytest.raises(ReloadFailed, match=r"policy 1 failed: .*; policy 0 to return to failed as well"):
        await asyncio.wait_for(gen.task, 40)
    assert learner.run_log.policies.bad() == [], "a broken engine says nothing of a policy"
    assert learner.run_log.stats.read().leases == 0


@pytest.mark.parametrize("error", [EngineBroken("weights on the meta device"), RuntimeError("short read")])
async def test_generator_ends_when_a_reload_raises(learner: LearnerSide, error: Exception) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    gen = start(settings_for(learner), engine)
    await until(lambda: gen.status["policy_step"] == 0)
    engine.reload_error = error
    learner.publish(1, nll=3.0)
    with pytest.raises(EngineBroken, match=str(error)):
        await asyncio.wait_for(gen.task, 40)


async def test_watcher_skips_to_the_newest_policy(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    engine = ScriptedEngine()
    async with running(settings_for(learner), engine) as gen:
        await until(lambda: gen.status["policy_step"] == 0)
        engine.probing.clear()
        learner.publish(1, nll=3.0)
        await until(lambda: len(engine.reloaded) == 1)
        for step in (2, 3, 4):
            learner.publish(step, nll=3.0 + step)
        engine.probing.set()
        await until(lambda: gen.status["policy_step"] == 4)
    assert [int(name[5:13]) for name in engine.reloaded] == [1, 4]


async def test_watcher_finds_a_policy_that_nobody_announced(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    async with running(settings_for(learner)) as gen:
        await until(lambda: gen.status["policy_step"] == 0)
        learner.publish(1, nll=3.0, announce=False)
        await until(lambda: gen.status["policy_step"] == 1)


@pytest.mark.parametrize("ending", [b"!", b""], ids=["changed", "cut"])
async def test_watcher_passes_over_a_torn_policy_and_takes_it_once_it_is_whole(
    learner: LearnerSide, ending: bytes
) -> None:
    learner.create().publish(0, nll=2.0)
    async with running(settings_for(learner)) as gen:
        await until(lambda: gen.status["policy_step"] == 0)
        weights, whole = torn_policy(learner, step=1, ending=ending)
        read = gen.process.registry.get_sample_value
        await until(lambda: (read("asympo_generator_corrupt_policies_total") or 0) >= 2)
        assert gen.status["policy_step"] == 0
        assert gen.engine.reloaded == []
        weights.write_bytes(whole)
        await until(lambda: gen.status["policy_step"] == 1)


async def test_generator_starts_on_the_newest_policy_and_probes_it(learner: LearnerSide) -> None:
    learner.create().publish(0, nll=2.0)
    newest = learner.publish(5, nll=3.0)
    async with running(settings_for(learner)) as gen:
        await until(lambda: learner.groups())
        assert gen.engine.started_on == newest.path
        assert gen.engine.reloaded == []
        assert gen.status["policy_step"] == 5


async def test_generator_falls_back_at_the_start_when_the_newest_policy_is_not_what_it_says(
    learner: LearnerSide,
) -> None:
    class MisreadingEngine(ScriptedEngine):
        async def mean_nll(self, token_ids, *, num_prompt_tokens):  # type: ignore[no-untyped-def]
            value = await super().mean_nll(token_ids, num_prompt_tokens=num_prompt_tokens)
            return value + (5.0 if "step-00000005" in str(self.served) else 0.0)

    learner.create().publish(0, nll=2.0)
    learner.publish(5, nll=3.0)
    async with running(settings_for(learner), MisreadingEngine()) as gen:
        await until(lambda: gen.status["policy_step"] == 0)
        [bad] = await until(learner.run_log.policies.bad)
        assert bad.step == 5


async def test_reloads_in_a_row_that_prove_nothing_raise_an_alert(
    make_learner: Callable[..., LearnerSide],
) -> None:
    learner = make_learner()
    learner.create().publish(0)
    async with running(settings_for(learner, max_consistent_reloads=2)) as gen:
        registry = gen.process.registry
        for step in (1, 2):
            await until(lambda before=step - 1: gen.status["policy_step"] == before)  # type: ignore[misc]
            assert registry.get_sample_value("asympo_generator_unproven_alert") == 0
            learner.publish(step, value=0.0)
        await until(lambda: gen.status["policy_step"] == 2)
        assert gen.status["last_reload"]["verdict"] == "unchanged"
        assert registry.get_sample_value("asympo_generator_unproven_alert") == 1
        learner.publish(3)
        await until(lambda: gen.status["policy_step"] == 3)
        assert registry.get_sample_value("asympo_generator_unproven_alert") == 0


async def test_layers_that_nothing_reads_back_leave_a_policy_unproven_and_served(
    learner: LearnerSide,
) -> None:
    learner.create().publish(0)
    engine = ScriptedEngine()
    engine.uncovered = ("experts",)
    async with running(settings_for(learner), engine) as gen:
        await until(lambda: gen.status["policy_step"] == 0)
        learner.publish(1)
        await until(lambda: gen.status["policy_step"] == 1)
        assert gen.status["last_reload"]["verdict"] == "unproven"


async def test_engine_that_speaks_no_sense_fails_weights_that_read_back(learner: LearnerSide) -> None:
    class ConfusedEngine(ScriptedEngine):
        async def mean_nll(self, token_ids, *, num_prompt_tokens):  # type: ignore[no-untyped-def]
            value = await super().mean_nll(token_ids, num_prompt_tokens=num_prompt_tokens)
            return value + (5.0 if "step-00000001" in str(self.served) else 0.0)

    learner.create().publish(0)
    async with running(settings_for(learner), ConfusedEngine()) as gen:
        await until(lambda: gen.status["policy_step"] == 0)
        learner.publish(1)
        [bad] = await until(learner.run_log.policies.bad)
        assert "mean NLL off by 5" in bad.reason


async def test_policy_is_claimed_before_it_is_read_and_spared_by_the_learner(learner: LearnerSide) -> None:
    learner.create()
    first = learner.publish(0, nll=2.0)
    session = LogSession(
        run_log=learner.run_log,
        fence=learner.fence,
        stop=StopSignal(),
        clock=SystemClock(),
        trained=TrainedIds(num_prompts=1),
        progress=Progress(),
    )
    engine = ScriptedEngine()
    engine.probing.clear()
    async with running(settings_for(learner), engine) as gen:
        # The engine has the first policy in its hands, and its probe is not answered yet.
        await until(lambda: gen.status["loading_step"] == 0 and engine.started_on)
        refs = [first, *(learner.publish(step, nll=2.0, announce=False) for step in range(1, 5))]
        deleted = await asyncio.to_thread(learner.store.prune, keep=2, is_in_use=session.is_policy_in_use)
        assert [ref.step for ref in deleted] == [1, 2]
        engine.probing.set()
        learner.announce(refs[-1])
        await until(lambda: gen.status["policy_step"] == 4 and gen.status["loading_step"] is None)
        await until(lambda: not session.is_policy_in_use(first))
        assert session.is_policy_in_use(refs[-1])
