"""An evaluator's own engine and the policies it is opened on."""

from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common.errors import CorruptCheckpoint, NoProgress
from asympo.engines.base import Readback
from asympo.evaluator.sources import EngineSource


class CountingEngine:
    """Says how often it was started and reloaded."""

    tokenizer = None

    def __init__(self) -> None:
        self.num_starts = self.num_reloads = 0

    async def start(self, *, model_path: Any) -> None:
        self.num_starts += 1

    async def reload(self, path: Any, *, manifest: Any) -> Any:
        self.num_reloads += 1
        return SimpleNamespace(readback=Readback(num_values=1, num_changed=None))


@pytest.mark.asyncio
async def test_policy_that_vanished_while_the_engine_started_is_loaded_into_that_engine_later() -> None:
    answers = [None, CorruptCheckpoint("gone"), None]

    async def run(*_: Any) -> Any:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return SimpleNamespace()

    engine: Any = CountingEngine()
    calls: Any = SimpleNamespace(run=run)
    store: Any = SimpleNamespace(verify=None)
    policy: Any = SimpleNamespace(step=1, path=None, name="step-1")
    source = EngineSource(engine, store=store, calls=calls)
    with pytest.raises(NoProgress, match="gone"):
        await source.open(policy)
    await source.open(policy)
    assert (engine.num_starts, engine.num_reloads) == (1, 1)
