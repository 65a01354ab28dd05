"""An engine without a model: answers that earn rewards, and the times and faults that its settings ask for.

For demonstrations, load tests and fault tests. What it says is a pure function of its seed, the request and
the policy step it serves; it imports neither torch nor vLLM.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asympo.common.checkpoints.manifest import decode_manifest
from asympo.common.errors import BadSetting, CorruptCheckpoint
from asympo.common.records import FinishReason
from asympo.engines.base import DoorTerms, Readback, Reloaded, ReloadTiming, Sample, SamplingSettings
from asympo.engines.groups import GroupEngine, ResponseRequest
from asympo.engines.settings import SimulatedSettings
from asympo.engines.simulated_answers import Answers, ByteTokenizer, ResponseLength, answer_addition
from asympo.tasks.tokenizer import open_tokenizer

if TYPE_CHECKING:
    from fastapi import FastAPI

    from asympo.common.checkpoints import Manifest


class SimulatedEngine(GroupEngine):
    """Engine without a model; see `base.Engine` for what each method promises."""

    def __init__(
        self, *, settings: SimulatedSettings | None = None, answers: Answers = answer_addition
    ) -> None:
        super().__init__()
        self._settings = settings = settings or SimulatedSettings()
        self._length = ResponseLength(
            kind=settings.length_kind, mean_tokens=settings.length_mean_tokens, sigma=settings.length_sigma
        )
        self._answers = answers
        self._tokenizer: Any = None
        self._eos_token_id = 0
        self._filler: list[int] = []
        self._manifest: Manifest | None = None
        self._origin = ""
        self._slots = asyncio.Semaphore(settings.max_num_seqs)
        self._swap = asyncio.Lock()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._is_paused = False
        self._paused_at = 0.0
        self._paused_seconds = 0.0
        self._num_decoding = 0

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def accuracy(self) -> float:
        """Probability that a sampled answer is right under the policy served."""
        settings, step = self._settings, 0 if self._manifest is None else self._manifest.step
        return min(settings.last_accuracy, settings.first_accuracy + settings.accuracy_per_step * step)

    async def start(self, *, model_path: Path) -> None:
        self._origin = str(model_path)
        if (model_path / "tokenizer.json").is_file():
            self._tokenizer = await asyncio.to_thread(open_tokenizer, str(model_path))
        else:
            self._tokenizer = ByteTokenizer()
        self._eos_token_id = self._tokenizer.eos_token_id or 0
        self._filler = list(self._tokenizer.encode(" hmm", add_special_tokens=False))
        manifest_path = model_path / "manifest.json"
        if manifest_path.is_file():
            self._manifest = decode_manifest(manifest_path.read_bytes(), what=str(model_path))

    async def mean_nll(self, token_ids: Sequence[int], *, num_prompt_tokens: int) -> float:
        self._require_usable()
        await self._resumed.wait()
        await asyncio.sleep(self._settings.seconds_per_token)
        self._require_usable()
        for sequence in self._manifest.probe.sequences if self._manifest else ():
            if tuple(token_ids) == sequence.token_ids and num_prompt_tokens == sequence.num_prompt_tokens:
                return sequence.mean_nll
        weights = self._manifest.digest if self._manifest else self._origin
        key = f"{weights}/{num_prompt_tokens}/{list(token_ids)}".encode()
        return 1.0 + int.from_bytes(hashlib.sha256(key).digest()[:4], "big") / 2**32

    async def reload(self, policy_path: Path, *, manifest: Manifest) -> Reloaded:
        faults, step = self._settings.faults, manifest.step
        async with self._swap:
            self._require_usable()
            num_in_flight, began = self._num_decoding, time.monotonic()
            self._freeze()
            try:
                async with asyncio.timeout(self._settings.reload_timeout_seconds):
                    if step in faults.hanging_steps:
                        await asyncio.Event().wait()
                    await asyncio.sleep(self._settings.reload_seconds)
                if step in faults.raising_steps:
                    raise CorruptCheckpoint(f"fault injected at step {step}")
            except BaseException as error:
                broken = self._broken(f"the reload of {policy_path} failed: {error!r}")
                if not isinstance(error, Exception):
                    raise
                raise broken from error
            is_changed = self._manifest is None or self._manifest.tensors != manifest.tensors
            if step not in faults.stale_steps:
                self._manifest = manifest
            loaded = time.monotonic()
            if not self._is_paused:
                self._thaw()
        self._num_reloads += 1
        timing = ReloadTiming(
            pause_seconds=time.monotonic() - began,
            reload_seconds=loaded - began,
            readback_seconds=0.0,
            num_in_flight=num_in_flight,
        )
        return Reloaded(timing=timing, readback=self._readback(manifest, num_changed=int(is_changed)))

    async def read_back(self, policy_path: Path, *, manifest: Manifest) -> Readback:
        return self._readback(manifest, num_changed=None)

    def _readback(self, manifest: Manifest, *, num_changed: int | None) -> Readback:
        """One value: the digests of the tensors that are served."""
        is_served = self._manifest is not None and self._manifest.tensors == manifest.tensors
        return Readback(
            num_values=1, num_changed=num_changed, wrong=() if is_served else ("the simulated weights",)
        )

    async def abort(self, request_id: str) -> None:
        for task in self._groups.get(request_id, ()):
            task.cancel()

    async def pause(self) -> None:
        self._require_usable()
        async with self._swap:
            self._is_paused = True
            self._freeze()

    async def resume(self) -> None:
        async with self._swap:
            self._require_usable()
            self._is_paused = False
            self._thaw()

    @asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        async with self._swap:
            self._require_usable()
            self._freeze()
            yield
            if not self._is_paused:
                self._thaw()

    async def build_door(self, terms: DoorTerms) -> FastAPI:
        raise BadSetting("the simulated engine has no door: leave door.port out, or choose vllm")

    async def close(self) -> None:
        self._failure = self._failure or "it is closed"
        self._cancel_groups()

    async def _sample(self, request: ResponseRequest) -> Sample:
        prompt_text = self._tokenizer.decode(request.prompt_ids, skip_special_tokens=True)
        async with self._slots:
            self._num_decoding += 1
            try:
                # The policy at the start decides, and the time passes afterwards: a response may span two.
                sample = self._draw(prompt_text, request.name, request.sampling)
                await self._decode_for(len(sample.token_ids) * self._settings.seconds_per_token)
            finally:
                self._num_decoding -= 1
        self._count(sample)
        if self._num_responses == self._settings.faults.die_after_responses:
            self._broken(f"fault injected after {self._num_responses} responses")
        return sample

    def _draw(self, prompt_text: str, name: str, sampling: SamplingSettings) -> Sample:
        source = prompt_text if sampling.temperature == 0 else name
        rng = random.Random(f"{self._settings.seed}/{sampling.seed}/{source}")
        right, wrong = self._answers(prompt_text)
        text = right if rng.random() < self.accuracy else rng.choice(wrong)
        answer = list(self._tokenizer.encode(text, add_special_tokens=False))
        num_filler = max(self._length.draw(rng), sampling.min_tokens) - len(answer) - 1
        filler = self._filler * (max(0, num_filler) // len(self._filler))
        token_ids = [*filler, *answer, self._eos_token_id]
        is_cut = len(token_ids) > sampling.max_tokens
        token_ids = token_ids[: sampling.max_tokens]
        return Sample(
            token_ids=tuple(token_ids),
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
            finish_reason=FinishReason.LENGTH if is_cut else FinishReason.STOP,
        )

    async def _decode_for(self, seconds: float) -> None:
        """Sleep for `seconds` of time in which the engine is not frozen."""
        await self._resumed.wait()
        end = self._decoding_seconds() + seconds
        while (left := end - self._decoding_seconds()) > 0 or not self._resumed.is_set():
            await asyncio.sleep(max(0.0, left))
            await self._resumed.wait()

    def _decoding_seconds(self) -> float:
        now = time.monotonic() if self._resumed.is_set() else self._paused_at
        return now - self._paused_seconds

    def _freeze(self) -> None:
        if self._resumed.is_set():
            self._paused_at = time.monotonic()
            self._resumed.clear()

    def _thaw(self) -> None:
        if not self._resumed.is_set():
            self._paused_seconds += time.monotonic() - self._paused_at
            self._resumed.set()
