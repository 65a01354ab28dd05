"""Policies one small step apart are swapped with requests in flight; faults are to be caught."""

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from asympo.bench.models import write_tiny_family
from asympo.bench.reload.publishing import MIN_STEPS, measure_publishing
from asympo.common.checkpoints import Manifest, Probe
from asympo.common.checkpoints.digests import available_cores, tensor_entries
from asympo.common.errors import BadSetting, EngineBroken
from asympo.common.records import FinishReason
from asympo.engines.base import Reloaded, ReloadTiming, SamplingSettings
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm import VllmEngine
from asympo.engines.vllm_faults import WORKER_EXTENSION
from asympo.testing.tiny_model import write_tiny_model

_DENSE_FAULTS = (
    *("nothing_changed", "fused_tensor_missing", "tensor_of_parent", "fused_tensor_of_parent"),
    *("layers_swapped", "key_and_value_swapped", "gate_and_up_swapped", "packed_copy_stale"),
    *("half_of_the_rows_stale", "embedding_stale", "norm_off_by_one_bit", "read_as_another_dtype"),
    *("rounded_to_8_bits", "signs_lost"),
)
_EXPERT_FAULTS = ("nothing_changed", "tensor_of_parent", "expert_of_parent", "experts_unpacked")
FAULTS = {
    "tied-llama": ("tied_head_stale", *_DENSE_FAULTS),
    "qwen3": _DENSE_FAULTS,
    "mixtral": (*_EXPERT_FAULTS, "packed_copy_stale"),
    "deepseek-v2": _EXPERT_FAULTS,
}
"""Which faults a tiny model of each family can have."""
_NUM_IDLE_LOADS = 5
BREAKING_FAULT = "whole_tensor_missing"
"""Refused by the loader's own account of what it filled: the engine is broken afterwards."""


@dataclass(kw_only=True)
class Counts:
    """What happened."""

    swaps: int = 0
    false_alarms: int = 0
    """Right reloads in which a value seemed to differ."""
    not_proved: int = 0
    """Right reloads that proved nothing: no value changed, or a layer could not be read back."""
    requests: int = 0
    requests_lost: int = 0
    tokens_lost: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)
    timings: list[ReloadTiming] = field(default_factory=list)
    expect_seconds: list[float] = field(default_factory=list)
    """Working out what the policy looks like inside the engine, beside the requests."""
    values_read_back: list[int] = field(default_factory=list)
    start_seconds: float = 0.0
    """Of the engine: what a restart takes."""
    idle_load_seconds: list[float] = field(default_factory=list)
    """Loading the same warm file on the idle engine, again and again."""

    def note(self, reloaded: Reloaded) -> None:
        """A right reload has ended."""
        readback = reloaded.readback
        self.swaps += 1
        self.false_alarms += bool(readback.wrong)
        self.not_proved += bool(readback.uncovered) or not readback.num_changed
        self.timings.append(reloaded.timing)
        self.values_read_back.append(readback.num_values)


@dataclass(kw_only=True)
class PolicyChain:
    """A chain of policies, each one step from the one before; two are kept."""

    current: Path
    directory: Path
    learning_rate: float
    start_seconds: float = 0.0
    """What starting the engine on the first one took."""
    num_made: int = 0
    num_changed: list[int] = field(default_factory=list)

    def advance(self) -> tuple[Path, Manifest]:
        """Write the next policy and forget the one before the last."""
        self.num_made += 1
        target = self.directory / f"policy-{self.num_made}"
        self.num_changed.append(
            write_next_policy(self.current, target, learning_rate=self.learning_rate, seed=self.num_made)
        )
        shutil.rmtree(self.directory / f"policy-{self.num_made - 2}", ignore_errors=True)
        self.current = target
        return target, manifest_for(target, step=self.num_made)


def write_next_policy(source: Path, target: Path, *, learning_rate: float, seed: int) -> int:
    """Copy a checkpoint as it is after one step that moves every weight by the learning rate.

    A value moves to the next bfloat16, up or down, with the probability that what publishing had rounded away
    and the step together cross the border. Returns the number of values that then differ, which at 1e-6 is a
    fraction of a percent, and none in norms near 1.
    """
    shutil.copytree(source, target)
    (target / "manifest.json").unlink(missing_ok=True)
    random = torch.Generator().manual_seed(seed)
    num_changed = 0
    for path in sorted(target.glob("*.safetensors")):
        tensors = load_file(path)
        for tensor in tensors.values():
            if tensor.dtype is not torch.bfloat16:
                continue
            bits = tensor.view(torch.int16)
            spacing = (bits & 0x7F80).view(torch.bfloat16).float().mul_(2.0**-7)
            draw = torch.rand(tensor.shape, generator=random).mul_(spacing)
            is_moved = (draw < learning_rate).logical_and_(spacing > 0)
            bits += torch.where(draw < learning_rate / 2, 1, -1).to(torch.int16).mul_(is_moved)
            num_changed += int(is_moved.sum())
        save_file(tensors, path, metadata={"format": "pt"})
    return num_changed


def manifest_for(directory: Path, *, step: int) -> Manifest:
    """What an engine asks of a manifest: the tensors by name, shape and digest."""
    return Manifest(
        step=step,
        fence=1,
        files=(),
        tensors=tensor_entries(sorted(directory.glob("*.safetensors"))),
        probe=Probe(sequences=(), tolerance=0.0),
        digest=f"{step:064d}",
    )


def measure_reload(arguments: argparse.Namespace, *, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs it all; one engine after another."""
    if arguments.swaps < 1 or arguments.requests < 1 or arguments.tokens < 1:
        raise BadSetting("--swaps, --requests and --tokens: give 1 or more")
    if arguments.publish_steps and arguments.publish_steps < MIN_STEPS:
        raise BadSetting(f"--publish-steps is {arguments.publish_steps}: give 0 or at least {MIN_STEPS}")
    # Beside a busy engine, threads that wait for one another make a policy in five times the time of one.
    torch.set_num_threads(1)
    return asyncio.run(_measure(arguments, say=say))


async def _measure(arguments: argparse.Namespace, *, say: Callable[[str], None]) -> dict[str, Any]:
    counts = Counts()
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        model, name = _model_of(arguments, directory)
        async with _engine(model, directory / "swaps", arguments) as (engine, policies):
            dtype, counts.start_seconds = engine.dtype, policies.start_seconds
            policy, manifest = await asyncio.to_thread(policies.advance)
            for _ in range(_NUM_IDLE_LOADS):
                idle = await engine.reload(policy, manifest=manifest)
                counts.idle_load_seconds.append(idle.timing.reload_seconds)
            async with _load(engine, counts, arguments):
                await _swaps(engine, policies, counts, arguments.swaps, say=say)
                changed = policies.num_changed[-arguments.swaps :]
                await _inject(engine, policies, counts, name, _faults_of(model), say=say)
        for family in arguments.family or FAULTS:
            tiny = await asyncio.to_thread(write_tiny_family, family, directory / f"model-{family}")
            async with _engine(tiny, directory / family, arguments) as (engine, policies):
                async with _load(engine, counts, arguments):
                    await _inject(engine, policies, counts, family, FAULTS[family], say=say)
                # Breaks the engine, and with it whatever would be in flight.
                counts.faults.append(await _fault(engine, policies, family, BREAKING_FAULT))
        published = {}
        if arguments.publish_steps:
            trained = Path(arguments.model) if arguments.model else write_tiny_model(directory / "trained")
            published = await asyncio.to_thread(
                measure_publishing, trained, directory / "runs", num_steps=arguments.publish_steps, say=say
            )
    return _report(counts, changed, arguments) | {"dtype": dtype} | published


async def _swaps(
    engine: VllmEngine, policies: PolicyChain, counts: Counts, number: int, *, say: Callable[[str], None]
) -> None:
    for at in range(number):
        policy, manifest = await asyncio.to_thread(policies.advance)
        began = time.monotonic()
        reloaded = await engine.reload(policy, manifest=manifest)
        counts.note(reloaded)
        counts.expect_seconds.append(time.monotonic() - began - reloaded.timing.pause_seconds)
        say(_line(at + 1, reloaded))


def _model_of(arguments: argparse.Namespace, directory: Path) -> tuple[Path, str]:
    if arguments.model:
        return Path(arguments.model), Path(arguments.model).name
    return write_tiny_family("llama", directory / "model"), "tiny llama"


def _faults_of(model: Path) -> Sequence[str]:
    """What can be injected into any model whose layers are named as Llama's are; none into others."""
    config = json.loads((model / "config.json").read_text())
    if config["model_type"] not in ("llama", "qwen2", "qwen3"):
        return ()
    return FAULTS["tied-llama"] if config.get("tie_word_embeddings") else _DENSE_FAULTS


async def _inject(
    engine: VllmEngine,
    policies: PolicyChain,
    counts: Counts,
    name: str,
    faults: Sequence[str],
    *,
    say: Callable[[str], None],
) -> None:
    for fault in faults:
        counts.faults.append(await _fault(engine, policies, name, fault))
        say(f"{name}, {fault}: {counts.faults[-1]['found'] or 'NOT CAUGHT'}")
        # The next fault must not be caught by what this one left behind.
        counts.note(await _swap(engine, policies))


async def _swap(engine: VllmEngine, policies: PolicyChain) -> Reloaded:
    policy, manifest = await asyncio.to_thread(policies.advance)
    return await engine.reload(policy, manifest=manifest)


async def _fault(engine: VllmEngine, policies: PolicyChain, name: str, fault: str) -> dict[str, Any]:
    await engine.rpc("inject", fault)
    try:
        wrong: Sequence[str] = (await _swap(engine, policies)).readback.wrong
    except EngineBroken as error:
        wrong = (str(error),)
    return {"model": name, "fault": fault, "caught": bool(wrong), "found": wrong[0] if wrong else None}


@contextlib.asynccontextmanager
async def _engine(
    model: Path, directory: Path, arguments: argparse.Namespace
) -> AsyncIterator[tuple[VllmEngine, PolicyChain]]:
    """An engine on the model, and policies that begin with it."""
    directory.mkdir()
    settings = EngineSettings(
        dtype=arguments.dtype, max_num_seqs=arguments.requests, max_model_len=512, kv_cache_gib=0.25
    )
    engine = VllmEngine(settings=settings, worker_extension_cls=WORKER_EXTENSION)
    try:
        began = time.monotonic()
        await engine.start(model_path=model)
        yield (
            engine,
            PolicyChain(
                current=model,
                directory=directory,
                learning_rate=arguments.learning_rate,
                start_seconds=time.monotonic() - began,
            ),
        )
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def _load(engine: VllmEngine, counts: Counts, arguments: argparse.Namespace) -> AsyncIterator[None]:
    """As many requests in flight as the engine takes, a new one for each that ends; the last ones end too."""
    sampling = SamplingSettings(max_tokens=arguments.tokens, min_tokens=arguments.tokens)
    is_over = asyncio.Event()

    async def ask(slot: int) -> None:
        number = 0
        while not is_over.is_set():
            name = f"{slot}.{number}"
            prompt = [5 + slot, 6, 7 + number % 100]
            [sample] = await engine.generate(
                prompt, num_samples=1, sampling=sampling, request_id=name, cache_salt=name
            )
            number += 1
            counts.requests += 1
            counts.requests_lost += sample.finish_reason is not FinishReason.LENGTH
            counts.tokens_lost += arguments.tokens - len(sample.token_ids)

    async with asyncio.TaskGroup() as group:
        for slot in range(arguments.requests):
            group.create_task(ask(slot))
        while engine.stats.num_in_flight < arguments.requests:
            await asyncio.sleep(0)
        yield
        is_over.set()


def _line(number: int, reloaded: Reloaded) -> str:
    timing, readback = reloaded.timing, reloaded.readback
    verdict = f"{readback.num_changed} places changed, all as published"
    for what, layers in (("cannot see", readback.uncovered), ("differs in", readback.wrong)):
        if layers:
            verdict = f"{what} {len(layers)} layers, {layers[0]}"
    return (
        f"swap {number}: {verdict}; paused {timing.pause_seconds:.2f} s, {timing.num_in_flight} in flight, "
        f"{readback.num_values} values read back in {timing.readback_seconds:.2f} s"
    )


def _report(counts: Counts, changed: Sequence[int], arguments: argparse.Namespace) -> dict[str, Any]:
    timings = counts.timings[: arguments.swaps]
    stall = statistics.median(timing.pause_seconds for timing in timings)
    idle = statistics.median(counts.idle_load_seconds)
    return {
        "stall_ratio_to_load": stall / idle,
        "stall_ratio_to_restart": stall / counts.start_seconds,
        "idle_load_seconds": idle,
        "start_seconds": counts.start_seconds,
        "swaps": counts.swaps,
        "false_alarms": counts.false_alarms,
        "not_proved": counts.not_proved,
        "faults_injected": len(counts.faults),
        "faults_caught": sum(fault["caught"] for fault in counts.faults),
        "requests": counts.requests,
        "requests_lost": counts.requests_lost,
        "tokens_lost": counts.tokens_lost,
        "pause_seconds": _spread([timing.pause_seconds for timing in timings]),
        "load_seconds": _spread([timing.reload_seconds for timing in timings]),
        "readback_seconds": _spread([timing.readback_seconds for timing in timings]),
        "expect_seconds": _spread(counts.expect_seconds),
        "in_flight": _spread([timing.num_in_flight for timing in timings]),
        "values_read_back": _spread(counts.values_read_back[: arguments.swaps]),
        "values_changed": _spread(changed),
        "learning_rate": arguments.learning_rate,
        "model": Path(arguments.model).name if arguments.model else "tiny llama",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": available_cores(),
        "vllm": version(packages_distributions()["vllm"][0]),
        "faults": counts.faults,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        "p95": ordered[int(0.95 * (len(ordered) - 1))],
        "max": ordered[-1],
    }
