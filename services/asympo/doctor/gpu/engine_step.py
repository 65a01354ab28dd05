"""vLLM on a small model: graphs, and reloads A, B, A, B while responses are under way, read back exactly."""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from asympo.common.checkpoints import Manifest, Probe, ProbeSequence
from asympo.common.checkpoints.digests import tensor_entries
from asympo.common.errors import EngineBroken
from asympo.doctor.gpu.steps import Found
from asympo.engines.base import Sample, SamplingSettings
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm import VllmEngine
from asympo.engines.vllm_device import gpu_environment
from asympo.testing.tiny_model import write_tiny_model

_PROMPT = tuple(range(10, 50))
PROBE = tuple(7 * place % 250 + 3 for place in range(200))
NUM_PROMPT_TOKENS = 4
_RESPONSE_TOKENS = {"cpu": 300, "cuda": 1500}
"""Long enough that responses are still under way after three reloads."""
_NLL_TOLERANCE = 0.05
"""Nats: bfloat16 against float32 on some hundred tokens is off by far less."""


def run(*, device: str, directory: Path) -> Found:
    """A tied head, and graphs where the device has them."""
    settings = EngineSettings(max_num_seqs=32, max_model_len=2048, kv_cache_gib=0.5)
    return try_reloads(settings, device=device, policies=write_policies(directory / "tied", is_tied=True))


def try_reloads(settings: EngineSettings, *, device: str, policies: Sequence[Path]) -> Found:
    """Of two policies, while responses are under way; one engine a process. Raises EngineBroken."""
    figures: dict[str, Any] = asyncio.run(_try_engine(settings, policies, _RESPONSE_TOKENS[device]))
    if device == "cuda":
        figures["sampler"] = gpu_environment(os.environ)[1]
    if (wrong := _wrong(figures)) is not None:
        return Found(sentence=wrong, is_ok=False, figures=figures)
    pause = figures["pause_milliseconds"]
    sentence = f"three reloads in flight, each proved by reading back, with a pause of {pause:.0f} ms"
    return Found(sentence=sentence, figures=figures)


def _wrong(found: dict[str, Any]) -> str | None:
    if found["wrong_layers"]:
        return f"after a reload {found['wrong_layers'][0]}"
    if found["uncovered"]:
        return f"a reload cannot be proved: {found['uncovered'][0]}"
    if found["nll_error_nats"] > _NLL_TOLERANCE:
        return f"NLL is off by {found['nll_error_nats']:.3f} nats"
    if not found["in_flight"]:
        return "no response was under way at the reloads"
    return None


async def _try_engine(settings: EngineSettings, policies: Sequence[Path], num_tokens: int) -> dict[str, Any]:
    expected = {policy: _reference_nll(policy) for policy in policies}
    engine = VllmEngine(settings=settings)
    begun = time.monotonic()
    await engine.start(model_path=policies[0])
    found: dict[str, Any] = {"start_seconds": round(time.monotonic() - begun, 1)}
    try:
        sampling = SamplingSettings(max_tokens=num_tokens, min_tokens=num_tokens)
        group = asyncio.ensure_future(generate(engine, sampling, "under-way"))
        # Answered after the engine has taken what was asked before.
        await engine.mean_nll(PROBE, num_prompt_tokens=NUM_PROMPT_TOKENS)
        begun = time.monotonic()
        wrong: list[str] = []
        uncovered: list[str] = []
        errors, timings = [], []
        # The last one stays: back to the first, which no check that compares with the start would notice.
        for policy in (policies[1], policies[0], policies[1]):
            done = await engine.reload(policy, manifest=_manifest(policy))
            wrong += done.readback.wrong
            uncovered += done.readback.uncovered
            timings.append(done.timing)
            nll = await engine.mean_nll(PROBE, num_prompt_tokens=NUM_PROMPT_TOKENS)
            errors.append(abs(nll - expected[policy]))
        samples = await group
        seconds = time.monotonic() - begun
        if any(len(sample.token_ids) != num_tokens for sample in samples):
            raise EngineBroken("responses that were under way at a reload were cut short")
        # What compiles a sampler where vLLM has one to compile.
        await generate(engine, SamplingSettings(max_tokens=8, top_p=0.9), "top-p")
        return found | {
            "wrong_layers": wrong,
            "uncovered": uncovered,
            "nll_error_nats": max(errors),
            "in_flight": min(timing.num_in_flight for timing in timings),
            "pause_milliseconds": 1e3 * max(timing.pause_seconds for timing in timings),
            "readback_milliseconds": 1e3 * max(timing.readback_seconds for timing in timings),
            "tokens_per_second_with_reloads": len(samples) * num_tokens / seconds,
        }
    finally:
        await engine.close()


async def generate(engine: VllmEngine, sampling: SamplingSettings, name: str) -> list[Sample]:
    return await engine.generate(_PROMPT, num_samples=16, sampling=sampling, request_id=name, cache_salt=name)


def write_policies(directory: Path, *, is_tied: bool) -> list[Path]:
    """Two policies of one shape; of an untied model the head has weights of its own."""
    policies = []
    for seed in (0, 1):
        path = write_tiny_model(directory / str(seed), seed=seed, hidden_size=256, head_size=64)
        if not is_tied:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
            model.config.tie_word_embeddings = False
            torch.manual_seed(seed)
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) / 16)
            model.save_pretrained(path)
        policies.append(path)
    return policies


def _manifest(policy: Path) -> Manifest:
    sequence = ProbeSequence(token_ids=PROBE, num_prompt_tokens=NUM_PROMPT_TOKENS, mean_nll=0.0)
    return Manifest(
        step=1,
        fence=1,
        files=(),
        tensors=tensor_entries(sorted(policy.glob("*.safetensors"))),
        probe=Probe(sequences=(sequence,), tolerance=_NLL_TOLERANCE),
        digest="0" * 64,
    )


def _reference_nll(policy: Path) -> float:
    """By transformers in float32, on the CPU."""
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    with torch.no_grad():
        log_probs = model(torch.tensor([PROBE])).logits[0, :-1].log_softmax(-1)
    nll = -log_probs.gather(1, torch.tensor(PROBE[1:])[:, None])[:, 0]
    return float(nll[NUM_PROMPT_TOKENS - 1 :].mean())
