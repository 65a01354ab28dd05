"""The learner alone on random weights: tokens a second, share of the peak, memory against the estimate."""

import gc
from pathlib import Path
from typing import Any

import torch

from asympo.bench.cell import LearnerCell, Options
from asympo.bench.flops import matmul_peak_flops
from asympo.bench.learner import needed_flops
from asympo.bench.memory import PeakMemory
from asympo.bench.models import named_config, random_model
from asympo.bench.shapes import make_rollouts, num_true_tokens, parse_shape
from asympo.common.settings import validate
from asympo.doctor.gpu.small_learner import small_config
from asympo.doctor.gpu.steps import Found
from asympo.learner.settings import LearnerSettings
from asympo.learner.step.compute import choose_compute, set_up_torch
from asympo.run.prepare.dry_run import model_shape
from asympo.run.prepare.needs import learner_bytes

_CASES = {
    "cuda": {"smollm2-135m": ("40/16/64", 4096), "qwen3-1.7b": ("256/2048/8", 16_384)},
    "cpu": {"small": ("16/8/1x2", 256)},
}
"""Model, its step, and tokens of a row."""
_MEMORY_TOLERANCE = 0.15
_NEEDED_SHARE = 1.1


def run(*, device: str, directory: Path) -> Found:
    """Wrong where the peak on a GPU is not what the estimate says."""
    set_up_torch(seed=0)
    figures: dict[str, Any] = {}
    wrong, said = "", ""
    for name, (shape, row_tokens) in _CASES[device].items():
        found = _measure(name, shape, row_tokens, device)
        key = name.replace("-", "_").replace(".", "_")
        figures |= {f"{key}_{what}": value for what, value in found.items()}
        if "skipped" in found:
            continue
        said = (
            f"{name} trains {found['tokens_per_second']:.0f} tokens/s, {found['peak_share']:.0%} of the peak"
        )
        ratio = found["peak_gb"] / found["estimate_gb"]
        if device == "cuda" and abs(ratio - 1) > _MEMORY_TOLERANCE:
            wrong = (
                f"{name} took {found['peak_gb']:.1f} GB where the estimate says {found['estimate_gb']:.1f}"
            )
    return Found(sentence=wrong or said, is_ok=not wrong, figures=figures)


def _measure(name: str, shape: str, row_tokens: int, device: str) -> dict[str, Any]:
    compute = choose_compute(
        device=device, compute_dtype="auto", share_prefixes="always", attention="auto", decided={}
    )
    settings = validate(LearnerSettings, {"gradient_checkpointing": True, "token_budget": row_tokens})
    config = small_config() if name == "small" else named_config(name)
    size = model_shape(name, config)
    # The published copy is not part of a cell.
    estimate = (
        learner_bytes(size, settings, device=device, row_tokens=row_tokens) - 2 * size["num_parameters"]
    )
    if device == "cuda" and _NEEDED_SHARE * estimate > torch.cuda.mem_get_info()[0]:
        return {"skipped": f"{estimate / 1e9:.0f} GB are needed", "estimate_gb": estimate / 1e9}
    memory = PeakMemory(compute.torch_device)
    in_use = memory.mark()
    model = random_model(config, device=compute.torch_device)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    options = Options(
        compute_dtype=compute.torch_dtype,
        token_budget=row_tokens,
        chunk_rows=settings.head_rows(device),
        attention=compute.attention,
    )
    cell = LearnerCell(model)
    model.train()
    rollouts = make_rollouts(parse_shape(shape), vocab_size=config.vocab_size)
    cell.step(rollouts, options)  # Compiles, and makes the optimizer's state.
    memory.mark()
    seconds = min(cell.step(rollouts, options).seconds for _ in range(2))
    peak = memory.peak() - in_use
    needed = needed_flops(model, options, rollouts) / seconds
    del cell, model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return {
        "tokens_per_second": num_true_tokens(rollouts) / seconds,
        "step_seconds": seconds,
        "peak_share": needed / matmul_peak_flops(compute.torch_device, compute.torch_dtype),
        "peak_gb": peak / 1e9,
        "estimate_gb": estimate / 1e9,
        "attention": compute.attention,
        "compute_dtype": compute.compute_dtype,
    }
