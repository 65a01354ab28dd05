"""A generator's engine from its start to its end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from asympo.common.checkpoints import PolicyRef, PolicyStore
from asympo.common.errors import BadSetting, CorruptCheckpoint, EngineBroken
from asympo.common.rollout_log import RunConfig
from asympo.common.rollout_log.broker.calls import Calls
from asympo.engines.base import Engine
from asympo.engines.model_files import local_model
from asympo.generator.gpu_share import GpuShare
from asympo.generator.reload.watcher import PolicyWatcher
from asympo.generator.settings import GeneratorSettings

log = logging.getLogger(__name__)

ENGINE_CLOSE_SECONDS = 30.0


def require_fresh_enough(engine: Engine, config: RunConfig) -> None:
    """Weights that never change are older than such a run takes: it would never give a prompt."""
    limits = {"max_staleness": 0} if config.max_staleness == 0 else {}
    if config.max_generation_staleness is not None:
        limits["max_generation_staleness"] = config.max_generation_staleness
    if limits and not engine.can_reload:
        name, value = next(iter(limits.items()))
        raise BadSetting(
            f"run {config.run!r} takes nothing from old policies ({name} is {value}), and this engine keeps "
            "the weights that it has: set openai.reload to what its server offers, or change the run"
        )


class FirstPolicy:
    """Finds what an engine starts on: the newest policy whose every byte verifies, else the run's model."""

    def __init__(
        self,
        settings: GeneratorSettings,
        *,
        store: PolicyStore,
        watcher: PolicyWatcher,
        calls: Calls,
        claim: Callable[[PolicyRef | None], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._store = store
        self._watcher = watcher
        self._calls = calls
        self._claim = claim

    async def start(self, engine: Engine, *, model: str, gpu: GpuShare) -> PolicyRef | None:
        """Starts the engine on it, once the GPU may be used; gives None for the bare model.

        Machines that share no directory need not have the model: the learner publishes it.
        """
        policy = await self._newest()
        model_path = policy.path if policy else await self._path_of(model)
        await gpu.wait()
        log.info("Starting the %s engine on %s", self._settings.engine, model_path)
        await engine.start(model_path=model_path)
        return policy

    async def _newest(self) -> PolicyRef | None:
        if self._settings.object_store.is_given and self._settings.model is None:
            log.info("Waiting for a policy of the learner")
            await self._watcher.next_after(None)
        while (policy := await self._watcher.newest()) is not None:
            await self._claim(policy)
            try:
                await self._calls.run(self._store.verify, policy)
            except (CorruptCheckpoint, OSError) as error:
                log.error("Policy %d does not verify and is passed over: %s", policy.step, error)
                self._watcher.pass_over(policy)
                continue
            break
        return policy

    async def _path_of(self, model: str) -> Path:
        # The simulated engine needs no weights and takes any name.
        if self._settings.engine == "simulated":
            return Path(model)
        return await self._calls.run(local_model, model)


async def watch_engine(engine: Engine) -> None:
    """Raises EngineBroken soon after an engine died, even if nobody was waiting for an answer."""
    while not engine.is_broken:
        await asyncio.sleep(1.0)
    raise EngineBroken("the engine died")


async def close_engine(engine: Engine) -> None:
    """Ends it, within a time."""
    try:
        async with asyncio.timeout(ENGINE_CLOSE_SECONDS):
            await engine.close()
    except TimeoutError:
        log.error("The engine did not close within %.0f s and is left behind", ENGINE_CLOSE_SECONDS)
