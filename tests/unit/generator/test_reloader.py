"""A stop that comes in the same instant as what the reloader waits for must not get lost."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.checkpoints import ProbeSequence
from asympo.common.errors import CorruptCheckpoint
from asympo.engines.base import Readback
from asympo.generator.reload.gate import VerdictGate
from asympo.generator.reload.reloader import Reloader


class SlowProbe:
    """An engine that answers its probe when told to."""

    can_reload = True

    def __init__(self) -> None:
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def mean_nll(self, token_ids: tuple[int, ...], *, num_prompt_tokens: int) -> float:
        self.asked.set()
        await self.answer.wait()
        return 1.0

    async def read_back(self, path: Any, *, manifest: Any) -> Readback:
        return Readback(num_values=1, num_changed=None)


def made(engine: SlowProbe, *, vanished: bool = False, watcher: Any = None) -> Reloader:
    sequence = ProbeSequence(token_ids=(1, 2, 3), num_prompt_tokens=1, mean_nll=1.0)
    manifest = SimpleNamespace(probe=SimpleNamespace(sequences=(sequence,)))

    async def run(*_: Any) -> Any:
        if vanished:
            raise CorruptCheckpoint("gone")
        return manifest

    context: Any = SimpleNamespace(
        engine=engine,
        calls=SimpleNamespace(run=run),
        holder="h",
        settings=SimpleNamespace(probe_timeout_seconds=30.0, max_consistent_reloads=3),
        **dict.fromkeys(("run_log", "metrics", "clock", "gpu")),
    )
    nothing: Any = None
    store: Any = SimpleNamespace(verify=None)
    return Reloader(
        context=context,
        store=store,
        watcher=watcher,
        gate=VerdictGate(),
        groups=nothing,
        turns=nothing,
        claim=nothing,
    )


@pytest.mark.asyncio
async def test_stop_that_comes_with_the_answer_of_a_probe_ends_the_reloader() -> None:
    engine = SlowProbe()
    following = asyncio.ensure_future(made(engine).adopt(SimpleNamespace(step=1, path=None)))  # type: ignore[arg-type]
    await engine.asked.wait()
    engine.answer.set()
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


@pytest.mark.asyncio
async def test_stop_that_comes_with_a_change_of_policy_ends_who_waits_for_it() -> None:
    reloader = made(SlowProbe())
    waiting = asyncio.ensure_future(reloader.wait_for_change(30.0, since_step=None))
    await asyncio.sleep(0)
    reloader._changed.set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.asyncio
@pytest.mark.timeout(20)
async def test_policy_loaded_while_the_broker_was_asked_is_not_waited_for() -> None:
    reloader = made(SlowProbe())
    reloader.policy = SimpleNamespace(step=2)  # type: ignore[assignment]
    await reloader.wait_for_change(30.0, since_step=1)


@pytest.mark.asyncio
async def test_policy_that_vanished_while_the_engine_started_is_passed_over_and_serves_nobody() -> None:
    passed_over: list[Any] = []
    reloader = made(SlowProbe(), vanished=True, watcher=SimpleNamespace(pass_over=passed_over.append))
    policy: Any = SimpleNamespace(step=1, path=None)
    await reloader.adopt(policy)
    assert passed_over == [policy]
    assert reloader.served_step is None
    assert reloader._gate.is_shut
