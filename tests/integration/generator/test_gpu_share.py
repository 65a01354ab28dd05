"""A generator on its learner's GPU: asleep while the learner computes, and nothing is lost by it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from asympo.generator.gpu_share import GpuShare
from asympo.local.gpu_lock import GpuLock

from tests.integration.generator.harness import LearnerSide, running, settings_for, until

pytestmark = pytest.mark.asyncio


async def test_generator_sleeps_while_the_learner_has_the_gpu(
    learner: LearnerSide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    awake, waits = GpuShare.awake, asyncio.Event()

    @asynccontextmanager
    async def watched(self: GpuShare) -> AsyncIterator[bool]:
        waits.set()
        async with awake(self) as was_asleep:
            yield was_asleep

    monkeypatch.setattr(GpuShare, "awake", watched)
    learner.create().publish(0, nll=2.0)
    path = tmp_path / "gpu.lock"
    lock = GpuLock(path)
    assert lock.try_own()
    async with running(settings_for(learner, gpu_lock=path)) as gen:
        await until(lambda: learner.run_log.presence.generators())
        assert gen.engine.started_on is None, "an engine that starts takes memory, too"
        lock.disown()
        await until(lambda: len(learner.groups()) == learner.config.capacity)
        gen.engine.flowing.clear()
        learner.free_all()
        await until(lambda: gen.engine.in_flight)
        await until(lock.try_own)
        assert gen.engine.is_asleep
        assert gen.engine.in_flight
        num_groups = len(learner.groups())
        # The engine says so itself when it is given weights in its sleep; awake, it takes the newest.
        waits.clear()
        learner.publish(1, nll=3.0)
        await until(waits.is_set)
        learner.publish(2, nll=4.0)
        lock.disown()
        await until(lambda: gen.status["policy_step"] == 2)
        await until(lambda: len(learner.groups()) > num_groups)
        assert len(gen.engine.reloaded) == 1
        # One that turns out to be bad meanwhile is not waited for with the GPU in hand.
        await until(lock.try_own)
        waits.clear()
        learner.publish(3, nll=5.0)
        await until(waits.is_set)
        learner.run_log.policies.mark_bad(step=3, fence=1, reason="stale", holder="another")
        lock.disown()
        await until(lambda: not gen.engine.is_asleep)
        await until(lock.try_own)
        lock.disown()
        assert (len(gen.engine.reloaded), gen.status["policy_step"]) == (1, 2)
        assert gen.status["requests_lost"] == 0
        assert gen.status["groups_handed_back"] == 0


async def test_swap_is_not_cut_by_a_sleep(learner: LearnerSide, tmp_path: Path) -> None:
    learner.create().publish(0, nll=2.0)
    path = tmp_path / "gpu.lock"
    async with running(settings_for(learner, gpu_lock=path)) as gen:
        await until(lambda: gen.status["policy_step"] == 0)
        gen.engine.probing.clear()
        learner.publish(1, nll=3.0)
        await until(lambda: gen.engine.reloaded)
        lock = GpuLock(path)
        assert not lock.try_own()
        gen.engine.probing.set()
        await until(lock.try_own)
        assert gen.status["policy_step"] == 1, "it fell asleep once the swap had its verdict"
