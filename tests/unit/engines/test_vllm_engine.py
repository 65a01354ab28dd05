"""What the vLLM engine refuses before anything reaches vLLM, and how it sums up what its workers found."""

from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common import errors
from asympo.engines.base import SamplingSettings
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm import VllmEngine

from tests.conftest import skip_without

skip_without("vllm")
pytestmark = pytest.mark.asyncio


class Workers:
    """An engine of several workers, each with its part of the answer."""

    errored = False

    def __init__(self, *, lora_config: object = None, found: list[dict[str, Any]] | None = None) -> None:
        self.vllm_config = SimpleNamespace(lora_config=lora_config)
        self._found = found or []

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        return self._found if method == "read_policy_back" else [True] * len(self._found)


def engine_of(workers: Workers) -> VllmEngine:
    engine = VllmEngine(settings=EngineSettings())
    engine._engine = workers  # type: ignore[assignment]
    return engine


async def test_prompt_is_not_scored_by_an_engine_that_serves_adapters() -> None:
    with pytest.raises(errors.PromptRefused, match="adapters"):
        await engine_of(Workers(lora_config=object())).mean_nll([1, 2, 3], num_prompt_tokens=1)


async def test_sampling_settings_that_vllm_refuses_are_no_fault_of_the_engine() -> None:
    engine = engine_of(Workers())
    with pytest.raises(errors.PromptRefused, match="min_tokens"):
        await engine.generate(
            [1],
            num_samples=1,
            sampling=SamplingSettings(max_tokens=1, min_tokens=2),
            request_id="r",
            cache_salt="s",
        )
    assert not engine.is_broken


def found(**changes: Any) -> dict[str, Any]:
    return {"num_values": 10, "num_changed": 2, "wrong": [], "uncovered": []} | changes


async def test_slice_of_any_worker_that_differs_is_wrong() -> None:
    workers = Workers(found=[found(), found(wrong=["q"], num_changed=3), found(wrong=["q"], uncovered=["e"])])
    readback = await engine_of(workers)._compare()
    assert (readback.num_values, readback.num_changed) == (30, 7)
    assert (readback.wrong, readback.uncovered) == (("q",), ("e",))


async def test_changes_are_unknown_when_one_worker_does_not_know_them() -> None:
    readback = await engine_of(Workers(found=[found(), found(num_changed=None)]))._compare()
    assert readback.num_changed is None
