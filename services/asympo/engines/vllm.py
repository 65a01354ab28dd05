"""vLLM inside this process's event loop (`AsyncLLM`), weights swapped while responses are under way."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asympo.common.errors import PromptRefused
from asympo.common.lifecycle import DaemonThreads
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
from asympo.engines.groups import GroupEngine, ResponseRequest
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm_load import CacheLoad
from asympo.engines.vllm_start import build_engine, first_line

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm import SamplingParams
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

    from asympo.common.checkpoints import Manifest
    from asympo.engines.vllm_fork import EngineFork

log = logging.getLogger(__name__)

WORKER_EXTENSION = "asympo.engines.vllm_worker.PolicyWorkerExtension"

NUM_COLUMNS = 16
"""Columns of a layer that a reload reads back: half are drawn anywhere, and as many for each tensor of the
file in that layer, from those that differ from the policy before."""
_EXPECTED_POLL_SECONDS = 0.02
_PROBE_PRIORITY = -1
_RESPONSE_PRIORITY = 0


class VllmEngine(GroupEngine):
    """Engine on vLLM; see `base.Engine` for what each method promises.

    Every response is a request of its own. The tokens of a prompt are still computed once for a group,
    through the prefix cache, and a slot is free as soon as its response ends rather than its group.
    """

    def __init__(
        self,
        *,
        settings: EngineSettings,
        worker_extension_cls: str = WORKER_EXTENSION,
        fork: EngineFork | None = None,
    ) -> None:
        """`fork`: a process that was made ahead for vLLM's engine."""
        super().__init__()
        self._settings = settings
        self._fork = fork
        self._worker_extension_cls = worker_extension_cls
        self._engine: AsyncLLM | None = None
        self._slots = asyncio.Semaphore(settings.max_num_seqs)
        self._swap = asyncio.Lock()
        self._is_paused = False
        self._in_engine: set[str] = set()
        self._num_probes = 0
        self._load = CacheLoad()

    @property
    def tokenizer(self) -> Any:
        return self._running().get_tokenizer()

    @property
    def dtype(self) -> str:
        """Data type of the weights and the cache, as vLLM chose it."""
        return str(self._running().vllm_config.model_config.dtype).removeprefix("torch.")

    @property
    def stats(self) -> EngineStats:
        return replace(
            super().stats, cache_ratio=self._load.ratio, num_preemptions=self._load.num_preemptions
        )

    @property
    def context_length(self) -> int | None:
        # As its engine process has fitted it to the cache.
        return int(self._running().vllm_config.model_config.max_model_len)

    @property
    def is_broken(self) -> bool:
        return super().is_broken or (self._engine is not None and self._engine.errored)

    async def start(self, *, model_path: Path) -> None:
        # In a thread, so that health checks are answered during the half minute this takes; one that ends
        # with the process, so that a start that hangs cannot keep it.
        asked = (model_path, self._settings, self._worker_extension_cls, self._load, self._fork)
        building = asyncio.get_running_loop().run_in_executor(DaemonThreads(1), build_engine, *asked)
        try:
            async with asyncio.timeout(self._settings.start_timeout_seconds):
                self._engine = await building
        except TimeoutError as error:
            limit = self._settings.start_timeout_seconds
            raise self._broken(f"vLLM did not start on {model_path} within {limit:.0f} s") from error
        await self._engine.collective_rpc("exit_with", args=(os.getpid(),))
        if self._settings.self_test:
            from asympo.engines.vllm_self_test import self_test

            await self_test(self, model_path)

    async def mean_nll(self, token_ids: Sequence[int], *, num_prompt_tokens: int) -> float:
        from vllm import SamplingParams

        if not 0 < num_prompt_tokens < len(token_ids):
            raise ValueError(f"{num_prompt_tokens} prompt tokens of {len(token_ids)}: none would be scored")
        if self._running().vllm_config.lora_config is not None:
            # With adapters, vLLM 0.32's engine crashes on prompt log-probabilities beside other requests.
            raise PromptRefused("an engine that serves adapters scores no prompts")
        self._num_probes += 1
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        name = f"probe-{self._num_probes}"
        output = await self._request(list(token_ids), params, name, cache_salt=name, priority=_PROBE_PRIORITY)
        if not output.prompt_logprobs or len(output.prompt_logprobs) != len(token_ids):
            raise self._broken(f"vLLM answered {name} without the log-probabilities of its prompt")
        scored = range(num_prompt_tokens, len(token_ids))
        rows = output.prompt_logprobs
        return -sum((rows[i] or {})[token_ids[i]].logprob for i in scored) / len(scored)

    async def reload(self, policy_path: Path, *, manifest: Manifest) -> Reloaded:
        tensors = [(entry.name, entry.dtype, list(entry.shape), entry.sha256) for entry in manifest.tensors]
        return await self.load_weights(policy_path, tensors)

    async def read_back(self, policy_path: Path, *, manifest: Manifest) -> Readback:
        async with self._swap:
            return await self.read_weights_back(policy_path)

    async def load_weights(self, path: Path, tensors: list[Any] | None) -> Reloaded:
        """reload() for callers that have tensor rows rather than a manifest (self-test, tools)."""
        engine = self._running()
        async with self._swap:
            self._require_usable()
            await self._expect(path, has_before=True)
            num_in_flight, began = len(self._in_engine), time.monotonic()
            try:
                # The KV cache stays: recomputing it would cost every response in flight its whole prompt, and
                # a response may span two policies. New prompts carry the new policy's salt and cannot hit
                # blocks of the old one.
                await self._limited(engine.pause_generation(mode="keep", clear_cache=False))
                paused = time.monotonic()
                await self.rpc("load_policy", str(path), tensors)
                loaded = time.monotonic()
                readback = await self._compare()
                compared = time.monotonic()
                if not self._is_paused:
                    await self._limited(engine.resume_generation())
            except BaseException as error:
                broken = self._broken(f"the reload of {path} failed: {_reason(error)}")
                if not isinstance(error, Exception):
                    raise
                raise broken from error
        self._num_reloads += 1
        timing = ReloadTiming(
            pause_seconds=time.monotonic() - began,
            reload_seconds=loaded - paused,
            readback_seconds=compared - loaded,
            num_in_flight=num_in_flight,
        )
        return Reloaded(timing=timing, readback=readback)

    async def read_weights_back(self, path: Path, *, num_columns: int | None = NUM_COLUMNS) -> Readback:
        """Compare the loaded weights with a checkpoint's; None columns means all of them."""
        await self._expect(path, num_columns=num_columns)
        return await self._compare()

    async def load_perturbed(self, path: Path, kind: str) -> None:
        """Load a checkpoint with all tensors of one kind changed on the way: the self-test's."""
        async with self._swap:
            await self.rpc("load_perturbed", str(path), kind)

    async def rpc(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every worker within the time limit of a phase."""
        return list(await self._limited(self._running().collective_rpc(method, args=args)))

    async def list_tensor_kinds(self) -> list[str]:
        """Kinds of tensors in the loaded checkpoint: names with the layer index taken out."""
        return list((await self.rpc("list_tensor_kinds"))[0])

    async def abort(self, request_id: str) -> None:
        engine = self._running()
        tasks = self._groups.get(request_id, ())
        names = [f"{request_id}/{index}" for index in range(len(tasks))]
        for name, task in zip(names, tasks, strict=True):
            if name not in self._in_engine:
                task.cancel()
        await engine.abort([name for name in names if name in self._in_engine])

    async def pause(self) -> None:
        engine = self._running()
        async with self._swap:
            await self._limited(engine.pause_generation(mode="keep", clear_cache=False))
            self._is_paused = True

    async def resume(self) -> None:
        engine = self._running()
        async with self._swap:
            self._require_usable()
            await self._limited(engine.resume_generation())
            self._is_paused = False

    @asynccontextmanager
    async def asleep(self) -> AsyncIterator[None]:
        engine = self._running()
        async with self._swap:
            self._require_usable()
            # The cache goes; what was in flight is computed again from its tokens so far.
            await self._or_broken(engine.sleep(level=1, mode="keep"), "did not fall asleep")
            yield
            await self._or_broken(engine.wake_up(), "did not wake up")
            if self._is_paused:
                await self._or_broken(
                    engine.pause_generation(mode="keep", clear_cache=False), "did not pause"
                )

    async def build_door(self, terms: DoorTerms) -> FastAPI:
        from asympo.engines.vllm_door import GuardedEngine, build_door

        engine = self._running()
        guarded = GuardedEngine(
            engine=engine,
            slots=self._slots,
            max_slots=self._settings.max_num_seqs,
            in_engine=self._in_engine,
            terms=terms,
        )
        return await build_door(guarded, terms, model_path=engine.vllm_config.model_config.model)

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        self._failure = self._failure or "the engine is closed"
        self._cancel_groups()
        engine.shutdown()
        # Its finaliser shuts down once more, in an interpreter that is already half gone.
        engine.shutdown = _nothing  # type: ignore[assignment,method-assign]

    async def _expect(
        self, path: Path, *, num_columns: int | None = NUM_COLUMNS, has_before: bool = False
    ) -> None:
        """Have every worker work out what a checkpoint looks like inside it; responses go on."""
        await self.rpc("expect_policy", str(path), secrets.randbits(63), num_columns, has_before)
        async with asyncio.timeout(self._settings.reload_timeout_seconds):
            while not all(await self.rpc("is_policy_expected")):
                await asyncio.sleep(_EXPECTED_POLL_SECONDS)

    async def _compare(self) -> Readback:
        """What all workers found together."""
        found = await self.rpc("read_policy_back")
        changed = [worker["num_changed"] for worker in found]
        return Readback(
            num_values=sum(worker["num_values"] for worker in found),
            num_changed=None if None in changed else sum(changed),
            wrong=tuple(dict.fromkeys(name for worker in found for name in worker["wrong"])),
            uncovered=tuple(dict.fromkeys(name for worker in found for name in worker["uncovered"])),
        )

    async def _sample(self, request: ResponseRequest) -> Sample:
        async with self._slots:
            self._in_engine.add(request.name)
            try:
                params = _sampling_params(request.sampling, request.index)
                output = await self._request(
                    list(request.prompt_ids),
                    params,
                    request.name,
                    cache_salt=request.cache_salt,
                    priority=_RESPONSE_PRIORITY,
                )
            finally:
                self._in_engine.discard(request.name)
        completion = output.outputs[0]
        token_ids = tuple(completion.token_ids)
        text = (
            completion.text
            if request.sampling.stop
            else self.tokenizer.decode(token_ids, skip_special_tokens=True)
        )
        reason = self._finish_reason(completion.finish_reason, request.name)
        return self._count(Sample(token_ids=token_ids, text=text, finish_reason=reason))

    async def _request(
        self, token_ids: list[int], params: SamplingParams, name: str, *, cache_salt: str, priority: int
    ) -> RequestOutput:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        params.output_kind = RequestOutputKind.FINAL_ONLY
        prompt = tokens_input(token_ids, cache_salt=cache_salt)
        final: RequestOutput | None = None
        try:
            async for output in self._running().generate(prompt, params, name, priority=priority):
                final = output
        except (EngineDeadError, EngineGenerateError) as error:
            raise self._broken(f"vLLM died while it served {name}: {_reason(error)}") from error
        except (ValueError, VLLMClientError) as error:
            raise PromptRefused(f"vLLM refused {name}: {first_line(error)}") from error
        if final is None:
            raise self._broken(f"vLLM ended {name} without an answer")
        return final

    def _finish_reason(self, reason: str | None, name: str) -> FinishReason:
        try:
            return FinishReason(reason or "")
        except ValueError as error:
            raise self._broken(f"vLLM ended {name} with reason {reason!r}") from error

    async def _or_broken(self, action: Awaitable[Any], what: str) -> None:
        try:
            await self._limited(action)
        except Exception as error:
            raise self._broken(f"vLLM {what}: {_reason(error)}") from error

    async def _limited(self, action: Awaitable[Any]) -> Any:
        async with asyncio.timeout(self._settings.reload_timeout_seconds):
            return await action

    def _running(self) -> AsyncLLM:
        self._require_usable()
        if self._engine is None:
            raise RuntimeError("the engine is not started")
        return self._engine


def _sampling_params(sampling: SamplingSettings, index: int) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError

    try:
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            stop=list(sampling.stop) or None,
            seed=None if sampling.seed is None else sampling.seed + index,
            detokenize=bool(sampling.stop),
        )
    except (ValueError, VLLMClientError) as error:
        raise PromptRefused(f"vLLM refuses these sampling settings: {first_line(error)}") from error


def _nothing(*_: Any) -> None:
    """In place of a method that must not run again."""


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it did not end within its time limit"
    return f"{type(error).__name__}: {first_line(error)}"
