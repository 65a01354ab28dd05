"""An engine without a model: answers that earn rewards, and the times and faults that its settings ask for.

For demonstrations, load tests and fault tests. What it says is a pure function of its seed, the request and
the policy step it serves; it imports neither torch nor vLLM.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asympo.common import errors
from asympo.common.checkpoints.manifest import decode_manifest
from asympo.common.records import FinishReason
from asympo.engines.base import EngineStats, Readback, Reloaded, ReloadTiming, Sample, SamplingSettings
from asympo.engines.simulated_answers import Answers, ByteTokenizer, ResponseLength, answer_addition

if TYPE_CHECKING:
    from asympo.common.checkpoints import Manifest

_ABORTED = Sample(token_ids=(), text="", finish_reason=FinishReason.ABORT)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedFaults:
    """Faults addressed by policy step, so that tests can say when."""

    stale_steps: frozenset[int] = frozenset()
    """Reloads of these steps report success and leave the old weights: what only a probe can see."""
    raising_steps: frozenset[int] = frozenset()
    """Reloads of these steps raise and break the engine."""
    hanging_steps: frozenset[int] = frozenset()
    """Reloads of these steps last until their time limit, then break the engine."""
    die_after_responses: int | None = None
    """The engine breaks once this many responses have been returned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedSettings:
    """What is simulated."""

    seed: int = 0
    max_num_seqs: int = 64
    """Responses decoded together; more wait."""
    seconds_per_token: float = 0.01
    """Time one response needs for each of its tokens."""
    length: ResponseLength = field(default_factory=ResponseLength)
    first_accuracy: float = 0.2
    """Probability of the right answer at policy step 0."""
    accuracy_per_step: float = 0.02
    """What each policy step adds."""
    last_accuracy: float = 0.95
    """Probability that is never exceeded."""
    reload_seconds: float = 0.05
    reload_timeout_seconds: float = 600.0
    """Limit of one reload."""
    faults: SimulatedFaults = field(default_factory=SimulatedFaults)


class SimulatedEngine:
    """Engine without a model; see `base.Engine` for what each method promises."""

    def __init__(
        self, *, settings: SimulatedSettings | None = None, answers: Answers = answer_addition
    ) -> None:
        self._settings = settings or SimulatedSettings()
        self._answers = answers
        self._tokenizer: Any = None
        self._eos_token_id = 0
        self._filler: list[int] = []
        self._manifest: Manifest | None = None
        self._origin = ""
        self._failure: str | None = None
        self._slots = asyncio.Semaphore(self._settings.max_num_seqs)
        self._swap = asyncio.Lock()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._is_paused = False
        self._paused_at = 0.0
        self._paused_seconds = 0.0
        self._groups: dict[str, list[asyncio.Task[Sample]]] = {}
        self._num_decoding = 0
        self._num_waiting = 0
        self._num_tokens_generated = 0
        self._num_responses = 0
        self._num_reloads = 0

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            num_tokens_generated=self._num_tokens_generated,
            num_responses=self._num_responses,
            num_in_flight=self._num_waiting,
            num_reloads=self._num_reloads,
        )

    @property
    def is_broken(self) -> bool:
        return self._failure is not None

    @property
    def accuracy(self) -> float:
        """Probability that a sampled answer is right under the policy served."""
        settings, step = self._settings, 0 if self._manifest is None else self._manifest.step
        return min(settings.last_accuracy, settings.first_accuracy + settings.accuracy_per_step * step)

    async def start(self, *, model_path: Path) -> None:
        self._origin = str(model_path)
        self._tokenizer = await asyncio.to_thread(_load_tokenizer, model_path)
        self._eos_token_id = self._tokenizer.eos_token_id or 0
        self._filler = list(self._tokenizer.encode(" hmm", add_special_tokens=False))
        manifest_path = model_path / "manifest.json"
        if manifest_path.is_file():
            self._manifest = decode_manifest(manifest_path.read_bytes(), what=str(model_path))

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        num_samples: int,
        sampling: SamplingSettings,
        request_id: str,
        cache_salt: str,
    ) -> list[Sample]:
        self._require_usable()
        if request_id in self._groups:
            raise ValueError(f"request {request_id!r} is already in flight")
        prompt_text = self._tokenizer.decode(prompt_ids, skip_special_tokens=True)
        tasks = [
            asyncio.create_task(self._sample(prompt_text, f"{request_id}/{index}", sampling))
            for index in range(num_samples)
        ]
        self._groups[request_id] = tasks
        self._num_waiting += num_samples
        try:
            await asyncio.wait(tasks)
            self._require_usable()
            return [_ABORTED if task.cancelled() else task.result() for task in tasks]
        finally:
            self._num_waiting -= num_samples
            del self._groups[request_id]
            for task in tasks:
                task.cancel()

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
                    raise errors.CorruptCheckpoint(f"fault injected at step {step}")
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

    async def close(self) -> None:
        self._failure = self._failure or "it is closed"
        self._cancel_groups()

    async def _sample(self, prompt_text: str, name: str, sampling: SamplingSettings) -> Sample:
        async with self._slots:
            self._num_decoding += 1
            try:
                # The policy at the start decides, and the time passes afterwards: a response may span two.
                sample = self._draw(prompt_text, name, sampling)
                await self._decode_for(len(sample.token_ids) * self._settings.seconds_per_token)
            finally:
                self._num_decoding -= 1
        self._num_tokens_generated += len(sample.token_ids)
        self._num_responses += 1
        if self._num_responses == self._settings.faults.die_after_responses:
            self._broken(f"fault injected after {self._num_responses} responses")
        return sample

    def _draw(self, prompt_text: str, name: str, sampling: SamplingSettings) -> Sample:
        source = prompt_text if sampling.temperature == 0 else name
        rng = random.Random(f"{self._settings.seed}/{sampling.seed}/{source}")
        right, wrong = self._answers(prompt_text)
        text = right if rng.random() < self.accuracy else rng.choice(wrong)
        answer = list(self._tokenizer.encode(text, add_special_tokens=False))
        num_filler = max(self._settings.length.draw(rng), sampling.min_tokens) - len(answer) - 1
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

    def _require_usable(self) -> None:
        if self._failure is not None:
            raise errors.EngineBroken(f"The engine is broken: {self._failure}.")

    def _broken(self, failure: str) -> errors.EngineBroken:
        self._failure = self._failure or failure
        self._cancel_groups()
        return errors.EngineBroken(f"The engine is broken: {self._failure}.")

    def _cancel_groups(self) -> None:
        for tasks in self._groups.values():
            for task in tasks:
                task.cancel()


def _load_tokenizer(model_path: Path) -> Any:
    """The directory's own tokenizer, else one of bytes."""
    if not (model_path / "tokenizer.json").is_file():
        return ByteTokenizer()
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(model_path))
    except (ValueError, OSError) as error:
        raise errors.BadModel(f"The tokenizer in {model_path} cannot be loaded: {error}") from error
