"""One GPU for both sides: an engine that sleeps with responses under way, and the demo in both ways."""

import asyncio
import time
from pathlib import Path
from typing import Any

import torch

from asympo.common.errors import EngineBroken, NoProgress
from asympo.common.jsonl import read_steps
from asympo.doctor.gpu.demo_step import summary_of_demo
from asympo.doctor.gpu.engine_step import NUM_PROMPT_TOKENS, PROBE, generate, write_policies
from asympo.doctor.gpu.steps import Found
from asympo.engines.base import SamplingSettings
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm import VllmEngine

_RESPONSE_TOKENS = {"cpu": 100, "cuda": 1500}
_MIN_FREED = 0.9
"""Of the cache's memory: it is given back whole, and the weights with it."""
_STEPS = 8
_CACHE_GIB = {"cpu": 0.1, "cuda": 4.0}


def run(*, device: str, directory: Path) -> Found:
    """On a CPU nothing is given back, and the demo is left out."""
    policy = write_policies(directory / "sharing", is_tied=True)[0]
    figures = asyncio.run(_try_sleep(policy, device))
    if figures["wrong_layers"]:
        return Found(sentence=f"after its sleep {figures['wrong_layers'][0]}", is_ok=False, figures=figures)
    if device == "cuda":
        freed = figures["freed_gib"]
        if freed < _MIN_FREED * _CACHE_GIB[device]:
            return Found(sentence=f"sleep gave {freed:.1f} GiB back", is_ok=False, figures=figures)
        for way in ("split", "sleep"):
            named = f"gpu-check-{way}"
            flags = ("--run.gpu-sharing", way, "--run.evaluate", "false")
            try:
                summary_of_demo(named, *flags, device=device, directory=directory, num_steps=_STEPS)
            except NoProgress as error:
                return Found(sentence=str(error), is_ok=False, figures=figures)
            figures[f"{way}_seconds_per_step"] = _seconds_per_step(directory / named)
    sentence = "asleep in {sleep_milliseconds:.0f} ms and awake in {wake_milliseconds:.0f} ms"
    return Found(sentence=sentence.format(**figures), figures=figures)


async def _try_sleep(policy: Path, device: str) -> dict[str, Any]:
    settings = EngineSettings(
        max_num_seqs=32, max_model_len=2048, kv_cache_gib=_CACHE_GIB[device], enable_sleep_mode=True
    )
    engine = VllmEngine(settings=settings)
    await engine.start(model_path=policy)
    try:
        num_tokens = _RESPONSE_TOKENS[device]
        sampling = SamplingSettings(max_tokens=num_tokens, min_tokens=num_tokens)
        group = asyncio.ensure_future(generate(engine, sampling, "asleep"))
        # Answered after the engine has taken what was asked before.
        await engine.mean_nll(PROBE, num_prompt_tokens=NUM_PROMPT_TOKENS)
        before, begun = _free_bytes(device), time.monotonic()
        async with engine.asleep():
            asleep, freed = time.monotonic(), _free_bytes(device) - before
            is_early = group.done()
            waking = time.monotonic()
        awake = time.monotonic()
        found = await engine.read_weights_back(policy, num_columns=None)
        samples = await group
    finally:
        await engine.close()
    if is_early or any(len(sample.token_ids) != num_tokens for sample in samples):
        raise EngineBroken("responses that were under way at a sleep were cut short, or none was")
    return {
        "wrong_layers": list(found.wrong),
        "freed_gib": freed / 2**30,
        "sleep_milliseconds": 1e3 * (asleep - begun),
        "wake_milliseconds": 1e3 * (awake - waking),
    }


def _seconds_per_step(run: Path) -> float:
    rows = read_steps(run / "metrics.jsonl")
    return float(rows[-1]["wall_seconds"] - rows[0]["wall_seconds"]) / (len(rows) - 1)


def _free_bytes(device: str) -> int:
    return torch.cuda.mem_get_info()[0] if device == "cuda" else 0
