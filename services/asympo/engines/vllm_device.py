"""What vLLM finds on this machine beside the model: a GPU that torch can use, a toolkit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from asympo.common.errors import BadSetting

SAMPLER = "VLLM_USE_FLASHINFER_SAMPLER"
_NVCC_SECONDS = 20.0


def require_gpu() -> None:
    """Raise BadSetting in one sentence where torch can use no GPU, and vLLM is not the CPU build."""
    import torch

    if torch.cuda.is_available():
        return
    try:
        torch.cuda.init()
        reason = "no GPU is visible"
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).split("\n")), "").split(". ")[0].rstrip(".")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU build"
    raise BadSetting(
        f"the installed vLLM samples on GPUs only, and torch can use none here ({reason}; torch is {built}): "
        "fix the driver (CUDA 13 needs 580 or newer), install the CPU build with `ASYMPO_DEVICE=cpu make "
        "setup`, or choose the engine 'simulated'"
    )


def gpu_environment(given: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Environment of the engine's processes on a GPU, and the sentence that says which sampler it gives."""
    # A fork of this process would copy its gRPC and HTTP threads' locks in whatever state they are.
    values = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if SAMPLER in given:
        return values, f"Sampler of top-p and top-k: as {SAMPLER}={given[SAMPLER]} says"
    lacking = toolkit_problem(given)
    if lacking is None:
        return values, "Sampler of top-p and top-k: FlashInfer's, compiled with the CUDA toolkit that is here"
    values[SAMPLER] = "0"
    return (
        values,
        f"Sampler of top-p and top-k: vLLM's own; FlashInfer's cannot be compiled ({lacking})",
    )


def toolkit_problem(given: Mapping[str, str]) -> str | None:
    """What is missing to compile FlashInfer's sampler when it is first used; None when nothing is."""
    path = given.get("PATH", os.defpath)
    if not any(shutil.which(name, path=path) for name in (given.get("CXX") or "c++", "g++", "clang++")):
        return "no C++ compiler"
    home = _toolkit(given, path)
    nvcc = home / "bin" / "nvcc"
    if not nvcc.is_file():
        return f"no nvcc in {home}"
    for header in ("cuda_runtime_api.h", "curand_kernel.h"):
        if not (home / "include" / header).is_file():
            return f"{home} lacks {header}"
    compiler, headers = _nvcc_version(nvcc), _header_version(home / "include" / "cuda_runtime_api.h")
    if compiler is None or compiler != headers:
        return f"{nvcc} is of CUDA {compiler or 'unknown'} and its headers are of {headers or 'unknown'}"
    return None


def _toolkit(given: Mapping[str, str], path: str) -> Path:
    """Where FlashInfer looks for it."""
    named = given.get("CUDA_HOME") or given.get("CUDA_PATH")
    if named:
        return Path(named)
    nvcc = shutil.which("nvcc", path=path)
    return Path(nvcc).parents[1] if nvcc else Path("/usr/local/cuda")


def _nvcc_version(nvcc: Path) -> str | None:
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=_NVCC_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"release (\d+\.\d+)", said.stdout)
    return found[1] if found else None


def _header_version(header: Path) -> str | None:
    found = re.search(r"#define\s+CUDART_VERSION\s+(\d+)", header.read_text(errors="replace"))
    return f"{int(found[1]) // 1000}.{int(found[1]) % 1000 // 10}" if found else None
