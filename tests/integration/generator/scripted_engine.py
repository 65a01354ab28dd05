"""An engine that does exactly what a test tells it to, as fast as the event loop turns."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from asympo.common.errors import BadSetting, EngineBroken
from asympo.common.records import FinishReason
from asympo.engines.base import (
    DoorTerms,
    EngineStats,
    Readback,
    Reloaded,
    ReloadTiming,
    Sample,
    SamplingSettings,
)
from asympo.engines.simulated_answers import ByteTokenizer
from fastapi import FastAPI

EOS = ByteTokenizer.eos_token_id


class ScriptedEngine:
    """Answers with `texts` in turn; serves a policy by remembering its directory."""

    tokenizer = ByteTokenizer()
    can_reload = True
    context_length: int | None = None

    def __init__(self) -> None:
        self.texts = ["7", "8"]
        self.finish_reason = FinishReason.STOP
        self.flowing = asyncio.Event()
        """Cleared: requests wait inside the engine."""
        self.flowing.set()
        self.is_stale = False
        """Reloads leave the weights as they were."""
        self.is_off = False
        """Every probe is grossly wrong from now on."""
        self.uncovered: tuple[str, ...] = ()
        """Layers that cannot be read back."""
        self.reload_error: Exception | None = None
        self.errors: list[Exception] = []
        """Raised by the next generations, one each."""
        self.probing = asyncio.Event()
        """Cleared: probes wait."""
        self.probing.set()
        self.served: Path | None = None
        self.started_on: Path | None = None
        self.reloaded: list[str] = []
        self.aborted: list[str] = []
        self.salts: list[str] = []
        self.sampled_with: list[SamplingSettings] = []
        self.in_flight: dict[str, asyncio.Event] = {}
        self.is_asleep = False
        self.num_closed = 0
        self.is_broken = False
        self._num_responses = 0

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            num_tokens_generated=2 * self._num_responses,
            num_responses=self._num_responses,
            num_in_flight=len(self.in_flight),
            num_reloads=len(self.reloaded),
        )

    async def start(self, *, model_path: Path) -> None:
        self.started_on = self.served = model_path

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        num_samples: int,
        sampling: SamplingSettings,
        request_id: str,
        cache_salt: str,
        messages: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Sample]:
        self.salts.append(cache_salt)
        self.sampled_with.append(sampling)
        if self.errors:
            raise self.errors.pop(0)
        aborted = self.in_flight[request_id] = asyncio.Event()
        try:
            waits = [asyncio.ensure_future(self.flowing.wait()), asyncio.ensure_future(aborted.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        finally:
            del self.in_flight[request_id]
        self._num_responses += num_samples
        reason = FinishReason.ABORT if aborted.is_set() else self.finish_reason
        return [self._sample(self.texts[index % len(self.texts)], reason) for index in range(num_samples)]

    def _sample(self, text: str, reason: FinishReason) -> Sample:
        end = (EOS,) if reason is FinishReason.STOP else ()
        return Sample(token_ids=(*self.tokenizer.encode(text), *end), text=text, finish_reason=reason)

    async def mean_nll(self, token_ids: Sequence[int], *, num_prompt_tokens: int) -> float:
        await self.probing.wait()
        assert self.served is not None
        if not (self.served / "manifest.json").exists():
            return 1.0
        manifest = json.loads((self.served / "manifest.json").read_text())
        values = {tuple(s["token_ids"]): s["mean_nll"] for s in manifest["probe"]["sequences"]}
        return float(values[tuple(token_ids)]) + (5.0 if self.is_off else 0.0)

    async def reload(self, policy_path: Path, *, manifest: Any) -> Reloaded:
        assert not self.is_asleep, "weights were touched while their memory was gone"
        if self.reload_error is not None:
            self.is_broken = isinstance(self.reload_error, EngineBroken)
            raise self.reload_error
        num_in_flight = 2 * len(self.in_flight)
        self.reloaded.append(policy_path.name)
        before = self._weights_of(self.served)
        if not self.is_stale:
            self.served = policy_path
        timing = ReloadTiming(
            pause_seconds=0.01, reload_seconds=0.005, readback_seconds=0.001, num_in_flight=num_in_flight
        )
        num_changed = int(before != self._weights_of(policy_path))
        return Reloaded(timing=timing, readback=self._readback(policy_path, num_changed=num_changed))

    async def read_back(self, policy_path: Path, *, manifest: Any) -> Readback:
        return self._readback(policy_path, num_changed=None)

    def _readback(self, policy_path: Path, *, num_changed: int | None) -> Readback:
        is_served = self._weights_of(self.served) == self._weights_of(policy_path)
        wrong = () if is_served else ("w (multiplied): 1 of 1 values",)
        return Readback(num_values=1, num_changed=num_changed, wrong=wrong, uncovered=self.uncovered)

    @staticmethod
    def _weights_of(path: Path | None) -> bytes | None:
        weights = path / "model.safetensors" if path else None
        return weights.read_bytes() if weights and weights.exists() else None

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        if request_id in self.in_flight:
            self.in_flight[request_id].set()

    async def pause(self) -> None:
        self.flowing.clear()

    async def resume(self) -> None:
        self.flowing.set()

    @asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        self.flowing.clear()
        self.is_asleep = True
        yield
        self.is_asleep = False
        self.flowing.set()

    async def build_door(self, terms: DoorTerms) -> FastAPI:
        raise BadSetting("a script has no door")

    async def close(self) -> None:
        self.num_closed += 1
