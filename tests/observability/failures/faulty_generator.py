"""A generator whose simulated engine gets a fault once a file is there: a program of its own."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asympo.common.clock import SystemClock
from asympo.common.lifecycle import StopSignal
from asympo.common.telemetry import set_up_logging
from asympo.engines.base import Sample
from asympo.engines.simulated import SimulatedEngine
from asympo.generator.app import GeneratorProcess
from asympo.generator.reload.verdict import MIN_TOKEN_NOISE
from asympo.generator.settings import GeneratorSettings

from tests.observability.failures.scene import Fault

_DRIFT = 15.0
"""In noises: more than rounding explains, and no reason to refuse the policy."""


class FaultyEngine(SimulatedEngine):
    def __init__(self, *, settings: GeneratorSettings, fault: str, begins: Path) -> None:
        super().__init__(settings=settings.simulated)
        self._fault, self._begins = fault, begins
        self._num_asked = 0

    def _has(self, fault: Fault) -> bool:
        return fault == self._fault and self._begins.exists()

    async def mean_nll(self, token_ids: Sequence[int], *, num_prompt_tokens: int) -> float:
        right = await super().mean_nll(token_ids, num_prompt_tokens=num_prompt_tokens)
        if not self._has("drifts") or self._manifest is None:
            return right
        probes = self._manifest.probe.sequences
        num_tokens = sum(len(each.token_ids) - each.num_prompt_tokens for each in probes)
        return right + _DRIFT * MIN_TOKEN_NOISE / num_tokens**0.5

    async def generate(
        self, prompt_ids: Sequence[int], *, messages: Sequence[Mapping[str, Any]] | None = None, **asked: Any
    ) -> list[Sample]:
        self._num_asked += 1
        if self._has("hangs"):
            await asyncio.Event().wait()
        if self._has("fails") and self._num_asked % 3 == 0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return await super().generate(prompt_ids, messages=messages, **asked)


def main() -> None:
    settings = GeneratorSettings.load(sys.argv[1:])
    log_watch = set_up_logging(service="generator", log_format=settings.log_format, level=settings.log_level)
    fault, begins = os.environ["FAULT"], Path(os.environ["FAULT_BEGINS"])
    with StopSignal() as stop:
        process = GeneratorProcess(
            settings=settings,
            stop=stop,
            clock=SystemClock(),
            engine_factory=lambda settings: FaultyEngine(settings=settings, fault=fault, begins=begins),
            log_watch=log_watch,
        )
        asyncio.run(process.run())


if __name__ == "__main__":
    main()
