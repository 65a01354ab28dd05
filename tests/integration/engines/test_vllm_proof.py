"""Reloads of one optimizer step at 1e-6, read back by the real engine: right ones proved, faults caught."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
from asympo.bench.models import write_tiny_family
from asympo.bench.reload.swaps import FAULTS, manifest_for, write_next_policy
from asympo.common import errors
from asympo.engines.base import Readback, SamplingSettings
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm import VllmEngine
from asympo.engines.vllm_faults import WORKER_EXTENSION

from tests.conftest import skip_without

skip_without("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(150)]

FAMILY = "deepseek-v2"
"""A tied head and other experts: tests/integration/bench/test_reload.py."""


@dataclass(kw_only=True)
class Stand:
    engine: VllmEngine
    policies: tuple[Path, Path]
    step: int = 0

    async def swap(self, fault: str | None = None) -> Readback:
        """Reload the other of two policies that are one step apart."""
        self.step += 1
        policy = self.policies[self.step % 2]
        await self.engine.rpc("inject", fault)
        reloaded = await self.engine.reload(policy, manifest=manifest_for(policy, step=self.step))
        return reloaded.readback


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stand(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    directory = tmp_path_factory.mktemp(FAMILY)
    first = write_tiny_family(FAMILY, directory / "first")
    write_next_policy(first, directory / "second", learning_rate=1e-6, seed=1)
    settings = EngineSettings(dtype="auto", max_num_seqs=8, max_model_len=256, kv_cache_gib=0.05)
    engine = VllmEngine(settings=settings, worker_extension_cls=WORKER_EXTENSION)
    await engine.start(model_path=first)
    yield Stand(engine=engine, policies=(first, directory / "second"))
    await engine.close()


async def test_every_column_reads_back_after_the_start_and_after_a_reload(stand: Stand) -> None:
    start = await stand.engine.read_weights_back(stand.policies[0], num_columns=None)
    assert (start.wrong, start.uncovered, start.num_changed) == ((), (), None)
    other = await stand.engine.read_weights_back(stand.policies[1], num_columns=None)
    assert len(other.wrong) > 6, "the policy of one step later is another one"
    found = await stand.swap()
    assert (found.wrong, found.uncovered) == ((), ())
    assert found.num_changed
    whole = await stand.engine.read_weights_back(stand.policies[1], num_columns=None)
    assert whole.wrong == ()
    assert whole.num_values > found.num_values > 1000


async def test_swaps_are_proved_with_responses_in_flight(stand: Stand) -> None:
    sampling = SamplingSettings(max_tokens=150, min_tokens=150)
    group = asyncio.create_task(
        stand.engine.generate(
            [5, 6, 7], num_samples=8, sampling=sampling, request_id="flight", cache_salt="s"
        )
    )
    while stand.engine.stats.num_in_flight < 8:
        await asyncio.sleep(0)
    for _ in range(6):
        found = await stand.swap()
        assert (found.wrong, found.uncovered) == ((), ())
        assert found.num_changed
    assert [len(sample.token_ids) for sample in await group] == [150] * 8


async def test_large_step_that_moves_every_tensor_is_proved(stand: Stand, tmp_path: Path) -> None:
    source, policy = stand.policies[stand.step % 2], tmp_path / "far"
    write_next_policy(source, policy, learning_rate=1.0, seed=7)
    reloaded = await stand.engine.reload(policy, manifest=manifest_for(policy, step=50))
    assert (reloaded.readback.wrong, reloaded.readback.uncovered) == ((), ())
    stale = await stand.engine.read_weights_back(source)
    assert [name for name in stale.wrong if "norm" in name], "norms moved as well"
    reloaded = await stand.engine.reload(source, manifest=manifest_for(source, step=stand.step))
    assert (reloaded.readback.wrong, reloaded.readback.uncovered) == ((), ())


async def test_reload_of_the_same_values_changes_nothing(stand: Stand) -> None:
    policy = stand.policies[stand.step % 2]
    reloaded = await stand.engine.reload(policy, manifest=manifest_for(policy, step=stand.step))
    assert (reloaded.readback.wrong, reloaded.readback.num_changed) == ((), 0)


async def test_faults_of_the_size_of_one_step_are_caught(stand: Stand) -> None:
    missed = []
    for fault in FAULTS[FAMILY]:
        found = await stand.swap(fault)
        if not found.wrong:
            missed.append(fault)
        # The next fault must not be caught by what this one left behind.
        assert (await stand.swap()).wrong == ()
    assert missed == []


async def test_reload_that_cannot_be_right_breaks_the_engine_for_good(stand: Stand) -> None:
    policy = stand.policies[0]
    manifest = manifest_for(policy, step=99)
    wrong = replace(manifest.tensors[-1], sha256="0" * 64)
    manifest = replace(manifest, tensors=(*manifest.tensors[:-1], wrong))
    group = asyncio.create_task(
        stand.engine.generate(
            [5, 6, 7],
            num_samples=2,
            sampling=SamplingSettings(max_tokens=200, min_tokens=200),
            request_id="last",
            cache_salt="l",
        )
    )
    while not stand.engine.stats.num_in_flight:
        await asyncio.sleep(0.01)
    with pytest.raises(errors.EngineBroken, match="other values for model"):
        await stand.engine.reload(policy, manifest=manifest)
    with pytest.raises(errors.EngineBroken):
        await group
    with pytest.raises(errors.EngineBroken):
        await stand.engine.resume()
    assert stand.engine.is_broken
