"""Where a policy can be asked: loaded into an engine of our own, or served by generators."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from asympo.common.checkpoints import Manifest, PolicyRef, PolicyStore
from asympo.common.errors import CorruptCheckpoint, EngineBroken, NoProgress
from asympo.common.http_server import bind, serving
from asympo.common.rollout_log import RunLog
from asympo.common.rollout_log.broker.calls import Calls
from asympo.engines.base import DoorTerms, Engine
from asympo.evaluator.measure import Sampler
from asympo.evaluator.samplers import EngineSampler, FleetSampler
from asympo.tasks.tokenizer import open_tokenizer

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_SERVED_SECONDS = 300.0
_CLOSE_SECONDS = 30.0


class Source(Protocol):
    """Makes policies answer."""

    @property
    def tokenizer(self) -> Any:
        """The run's tokenizer; valid once a policy was opened."""

    async def open(self, policy: PolicyRef) -> Sampler:
        """Asks this policy from now on. Raises NoProgress when it cannot be had, EngineBroken."""

    async def door(self, policy: PolicyRef) -> tuple[str, Sampler]:
        """Where episodes ask the policy that was opened, and who says which one answers there."""

    async def close(self) -> None: ...


class EngineSource:
    """An engine that no swap disturbs while it is asked."""

    def __init__(
        self, engine: Engine, *, store: PolicyStore, calls: Calls, tool_call_parser: str | None = None
    ) -> None:
        self._engine, self._store, self._calls = engine, store, calls
        self._tool_call_parser = tool_call_parser
        self._is_started = False
        self._policy: PolicyRef | None = None
        """Whose values were read back."""
        self._door = ""
        self._closing = AsyncExitStack()

    @property
    def tokenizer(self) -> Any:
        return self._engine.tokenizer

    async def open(self, policy: PolicyRef) -> Sampler:
        manifest = await self._verified(policy)
        if not self._is_started:
            await self._engine.start(model_path=policy.path)
            self._is_started = True
            # Starting takes minutes, in which the copy may have been deleted.
            manifest = await self._verified(policy)
            readback = await self._engine.read_back(policy.path, manifest=manifest)
        elif self._policy != policy:
            readback = (await self._engine.reload(policy.path, manifest=manifest)).readback
        else:
            return self._sampler(policy)
        if readback.wrong:
            raise EngineBroken(
                f"the engine's values differ from those of policy {policy.step}: {readback.wrong[0]}"
            )
        self._policy = policy
        return self._sampler(policy)

    async def _verified(self, policy: PolicyRef) -> Manifest:
        try:
            return await self._calls.run(self._store.verify, policy)
        except (CorruptCheckpoint, OSError) as error:
            raise NoProgress(f"policy {policy.step} failed verification ({error})") from None

    async def door(self, policy: PolicyRef) -> tuple[str, Sampler]:
        if not self._door:
            self._door = await self._open_door()
        return self._door, self._sampler(policy)

    async def _open_door(self) -> str:
        async def opened() -> int:
            """What is loaded here has been read back."""
            return 0

        async def passes(_: int) -> bool:
            return True

        terms = DoorTerms(
            model_name="policy",
            tool_call_parser=self._tool_call_parser,
            opened=opened,
            passes=passes,
            cache_salt=lambda: self._policy.name if self._policy else "",
            policy_step=lambda: self._policy.step if self._policy else None,
        )
        app = await self._engine.build_door(terms)
        listener = bind("127.0.0.1", 0)
        await self._closing.enter_async_context(serving(app, listener))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    def _sampler(self, policy: PolicyRef) -> Sampler:
        return EngineSampler(self._engine, policy_step=policy.step, policy_name=policy.name)

    async def close(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._closing.aclose()
                await self._engine.close()
        except TimeoutError:
            log.error("The engine did not close within %.0f s and is left behind", _CLOSE_SECONDS)


class FleetSource:
    """Generators that go on with their work; if they swap policies meanwhile, the result says so."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        run_log: RunLog,
        store: PolicyStore,
        calls: Calls,
        doors: Sequence[str] = (),
    ) -> None:
        self._run_log, self._store, self._calls = run_log, store, calls
        self._doors = doors
        self._sampler, self._first = FleetSampler(addresses), FleetSampler(addresses[:1])
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    async def open(self, policy: PolicyRef) -> Sampler:
        if self._tokenizer is None:
            try:
                await self._calls.run(self._store.verify, policy)
            except (CorruptCheckpoint, OSError) as error:
                raise NoProgress(f"policy {policy.step} failed verification ({error})") from None
            self._tokenizer = await self._calls.run(open_tokenizer, str(policy.path))
        try:
            async with asyncio.timeout(_SERVED_SECONDS):
                while not await self._is_served(policy):
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise NoProgress(
                f"no generator serves policy {policy.step} after {_SERVED_SECONDS:g} s"
            ) from None
        return self._sampler

    async def _is_served(self, policy: PolicyRef) -> bool:
        reports = await self._calls.until_answered(self._run_log.presence.generators)
        served = [(each.get("policy_fence"), each.get("policy_step")) for each in reports]
        return any(
            isinstance(fence, int) and isinstance(step, int) and (fence, step) >= (policy.fence, policy.step)
            for fence, step in served
        )

    async def door(self, policy: PolicyRef) -> tuple[str, Sampler]:
        return self._doors[0], self._first

    async def close(self) -> None:
        await self._sampler.close()
        await self._first.close()
