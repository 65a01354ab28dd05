"""`asympo bench learner`: tokens per second, memory, and what each part of the learner is worth."""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from asympo.bench import loss_stage
from asympo.bench.cell import LearnerCell, Options, alternate, make_policy, trained_groups
from asympo.bench.flops import matmul_peak_flops
from asympo.bench.memory import PeakMemory
from asympo.bench.models import named_config, random_model
from asympo.bench.shapes import SHAPES, Rollout, Shape, make_rollouts, num_true_tokens, parse_shape
from asympo.common.checkpoints.digests import available_cores
from asympo.learner.model.batching import pack
from asympo.learner.model.check import check_weights
from asympo.learner.model.flops import FlopCount
from asympo.learner.model.policy import load_model, vocab_size
from asympo.learner.settings import HEAD_ROWS
from asympo.learner.step.compute import choose_compute, set_up_torch

Say = Callable[[str], None]


def measure_learner(arguments: argparse.Namespace, *, say: Say) -> dict[str, Any]:
    """The whole report, or the parts asked for."""
    wanted = set(arguments.only or ("speed", "loss", "sharing", "parts"))
    set_up_torch(seed=0, num_threads=arguments.num_threads)
    compute = choose_compute(
        device=arguments.device,
        compute_dtype=arguments.compute_dtype,
        share_prefixes="auto",
        attention=arguments.attention,
        decided={},
    )
    shapes = [parse_shape(text) for text in arguments.shape or ()] or list(SHAPES)
    report: dict[str, Any] = {"machine": machine(compute.torch_device), **compute.to_decisions()}
    if "loss" in wanted:
        say("the loss stage, chunked and whole")
        report["loss"] = loss_stage.measure(
            device=compute.device, dtype=compute.compute_dtype, rounds=arguments.repeats
        )
        report |= {name: report["loss"].pop(name) for name in ("loss_time_ratio", "loss_memory_ratio")}
    wanted.discard("loss")
    if "speed" in wanted and (len(shapes) > 1 or len(wanted) > 1):
        # A process for each shape: what one made the allocator keep must not count for the next.
        for shape in shapes:
            say(f"{shape.name}: steps")
            join_shape(report, _speed_of_one_shape(arguments, shape))
        wanted.discard("speed")
    if not wanted:
        return report
    memory = PeakMemory(compute.torch_device)
    model = _model(arguments, compute.torch_device)
    options = Options(
        compute_dtype=compute.torch_dtype,
        token_budget=arguments.token_budget,
        chunk_rows=arguments.head_chunk_rows or HEAD_ROWS[compute.device],
        share_prefixes=compute.share_prefixes,
        attention=compute.attention,
    )
    check_weights(make_policy(model, options))
    cell = LearnerCell(model)
    report["model"] = {
        "name": arguments.model_config or arguments.model or "demo",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    rollouts = {shape.name: make_rollouts(shape, vocab_size=vocab_size(model.config)) for shape in shapes}
    if "speed" in wanted:
        report |= _speed(cell, options, rollouts, memory, arguments.repeats)
    if "parts" in wanted:
        gains = report["gain"] = _parts(cell, options, rollouts, arguments.repeats, say)
        if "sharing" in wanted:
            report["shared_prompt_speedup"] = {
                shape: gain["shared_prefixes"] for shape, gain in gains.items()
            }
    elif "sharing" in wanted:
        report["shared_prompt_speedup"] = _sharing(cell, options, rollouts, arguments.repeats, say)
    return report


def _speed_of_one_shape(arguments: argparse.Namespace, shape: Shape) -> dict[str, Any]:
    command = [sys.executable, "-m", "asympo.cli", "bench", "learner", "--json", "--only", "speed"]
    command += ["--shape", shape.name]
    for name, value in vars(arguments).items():
        if name in ("verb", "shape", "only", "json") or value is None or value is False:
            continue
        command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def join_shape(report: dict[str, Any], part: dict[str, Any]) -> None:
    """Figures by shape are joined; of all others the first stand, which nothing before them has disturbed."""
    for name, value in part.items():
        if not isinstance(value, dict):
            report.setdefault(name, value)
            continue
        known = report.setdefault(name, {})
        for key, figure in value.items():
            known.setdefault(key, figure)


def machine(device: torch.device) -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _model(arguments: argparse.Namespace, device: torch.device) -> PreTrainedModel:
    if arguments.model_config:
        return random_model(named_config(arguments.model_config), device=device)
    path = arguments.model
    if path is None:
        from asympo.demo.model import prepare_model

        path = prepare_model()
    return load_model(path, dtype=torch.float32, device=device)


def _speed(
    cell: LearnerCell,
    options: Options,
    rollouts: dict[str, list[Rollout]],
    memory: PeakMemory,
    repeats: int,
) -> dict[str, Any]:
    device = next(cell.model.parameters()).device
    peak_flops = matmul_peak_flops(device, options.compute_dtype)
    whole, inner, speeds, peaks, products = {}, {}, {}, {}, {}
    for name, groups in rollouts.items():
        memory.mark()
        steps = [cell.step(groups, options) for _ in range(1 + repeats)][1:]
        peaks[name] = memory.peak()
        seconds = statistics.median(step.seconds for step in steps)
        before_update = statistics.median(step.seconds - step.optimizer_seconds for step in steps)
        # Before and after: a peak taken in a slow moment would flatter the step.
        peak_flops = max(peak_flops, matmul_peak_flops(device, options.compute_dtype))
        products[name] = peak_flops
        speeds[name] = num_true_tokens(groups) / seconds
        needed = needed_flops(cell.model, options, groups)
        whole[name], inner[name] = needed / seconds / peak_flops, needed / before_update / peak_flops
    return {
        "matmul_peak_flops": products,
        "tokens_per_second": speeds,
        "peak_memory_bytes": peaks,
        "matmul_peak_share": whole,
        "forward_backward_peak_share": inner,
    }


def _arm(cell: LearnerCell, rollouts: list[Rollout], options: Options) -> Callable[[], float]:
    return lambda: cell.step(rollouts, options).seconds


def needed_flops(model: PreTrainedModel, options: Options, rollouts: Sequence[Rollout]) -> float:
    """Operations of one step, attention counted causally; computing a layer again does not count."""
    batches = pack(
        trained_groups(rollouts), token_budget=options.token_budget, share_prefixes=options.share_prefixes
    )
    return FlopCount.of(model).step(
        num_tokens=sum(batch.num_tokens for batch in batches),
        num_head_rows=sum(len(batch.source_U) for batch in batches),
        num_pairs=sum(batch.num_pairs for batch in batches),
    )


def _sharing(
    cell: LearnerCell, options: Options, rollouts: dict[str, list[Rollout]], repeats: int, say: Say
) -> dict[str, float]:
    speedups = {}
    for name, groups in rollouts.items():
        say(f"{name}: shared prompts, and not")
        seconds = alternate(
            {
                "shared": _arm(cell, groups, replace(options, share_prefixes=True)),
                "separate": _arm(cell, groups, replace(options, share_prefixes=False)),
            },
            repeats=repeats,
        )
        speedups[name] = seconds["separate"] / seconds["shared"]
    return speedups


def _parts(
    cell: LearnerCell, options: Options, rollouts: dict[str, list[Rollout]], repeats: int, say: Say
) -> dict[str, dict[str, float]]:
    """Time of a step without the part, over the time with it, everything else as it is.

    Packing is tried on the shape with the most responses: elsewhere rows hold few sequences anyway.
    """
    options = replace(options, share_prefixes=True)
    most = max(rollouts, key=lambda name: sum(len(rollout.responses) for rollout in rollouts[name]))
    without = {
        "shared_prefixes": replace(options, share_prefixes=False),
        "chunked_head": replace(options, use_chunked_head=False),
        "fused_optimizer": replace(options, use_fused_optimizer=False),
        "fused_layers": replace(options, use_fused_layers=False),
    }
    if options.attention == "flex":
        without["flex_attention"] = replace(options, attention="blocks")
    gains: dict[str, dict[str, float]] = {}
    for name, groups in rollouts.items():
        say(f"{name}: parts switched off one at a time")
        arms = {"all": _arm(cell, groups, options)}
        for part, changed in without.items():
            arms[part] = _arm(cell, groups, changed)
        # Packing is compared among separate sequences: rows of many against a row for each.
        if name == most:
            arms["packing"] = _arm(cell, groups, replace(without["shared_prefixes"], token_budget=1))
        # What the first step of all allocates is not the other parts' fault.
        seconds = alternate(arms, repeats=repeats, warm=("all", "fused_optimizer"))
        gains[name] = {part: seconds[part] / seconds["all"] for part in without}
        if name == most:
            gains[name]["packing"] = seconds["packing"] / seconds["shared_prefixes"]
        cell.forget_optimizer(is_fused=False)
        gc.collect()
    return gains
