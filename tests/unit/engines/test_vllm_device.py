"""GPU and toolkit as vLLM would find them; stand-ins for nvcc, headers and the platform."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asympo.common import errors
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm_device import SAMPLER, gpu_environment, require_gpu, toolkit_problem
from asympo.engines.vllm_load import CacheLoad
from asympo.engines.vllm_start import build_engine, engine_args


def make_toolkit(
    root: Path, *, nvcc: str | None = "13.0", headers: int | None = 13000, has_curand: bool = True
) -> dict[str, str]:
    """An environment in which a toolkit of these versions is installed, with a C++ compiler beside it."""
    home, tools = root / "cuda", root / "tools"
    for directory in (home / "bin", home / "include", tools):
        directory.mkdir(parents=True)
    programs = {tools / "g++": ""}
    if nvcc is not None:
        programs[home / "bin" / "nvcc"] = f"echo 'Cuda compilation tools, release {nvcc}, V{nvcc}.1'"
    for path, text in programs.items():
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    if headers is not None:
        (home / "include" / "cuda_runtime_api.h").write_text(f"#define CUDART_VERSION  {headers}\n")
    if has_curand:
        (home / "include" / "curand_kernel.h").write_text("")
    return {"PATH": f"{tools}:/usr/bin:/bin", "CUDA_HOME": str(home), "CXX": "g++"}


def test_flashinfer_samples_where_its_compiler_is_whole(tmp_path: Path) -> None:
    given = make_toolkit(tmp_path)
    assert toolkit_problem(given) is None
    values, sentence = gpu_environment(given)
    assert SAMPLER not in values
    assert "FlashInfer's, compiled" in sentence


@pytest.mark.parametrize(
    ("changes", "lacking"),
    [
        ({"nvcc": None}, "no nvcc in"),
        ({"nvcc": "13.5"}, "is of CUDA 13.5 and its headers are of 13.0"),
        ({"nvcc": "12.4", "headers": 12090}, "is of CUDA 12.4 and its headers are of 12.9"),
        ({"headers": None}, "lacks cuda_runtime_api.h"),
        ({"has_curand": False}, "lacks curand_kernel.h"),
    ],
)
def test_vllm_samples_itself_where_something_is_missing(
    tmp_path: Path, changes: dict[str, Any], lacking: str
) -> None:
    values, sentence = gpu_environment(make_toolkit(tmp_path, **changes))
    assert values[SAMPLER] == "0"
    assert lacking in sentence


def test_toolkit_without_a_host_compiler_compiles_nothing(tmp_path: Path) -> None:
    given = make_toolkit(tmp_path) | {"PATH": str(tmp_path / "nowhere")}
    assert toolkit_problem(given) == "no C++ compiler"


def test_toolkit_is_found_beside_nvcc_in_the_path(tmp_path: Path) -> None:
    given = make_toolkit(tmp_path)
    home = given.pop("CUDA_HOME")
    assert toolkit_problem(given | {"PATH": f"{given['PATH']}:{home}/bin"}) is None


def test_sampler_that_was_chosen_by_hand_is_left_alone() -> None:
    values, sentence = gpu_environment({SAMPLER: "1", "PATH": "/nowhere"})
    assert SAMPLER not in values
    assert f"{SAMPLER}=1" in sentence


@pytest.mark.slow
def test_engine_for_gpus_without_one_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm.v1.engine.async_llm")
    import vllm.platforms as platforms

    # What vLLM's CUDA build resolves to where it finds no driver.
    unspecified = SimpleNamespace(is_cpu=lambda: False, device_type="")
    monkeypatch.setattr(platforms, "_current_platform", unspecified)
    monkeypatch.setattr("asympo.engines.vllm_start.check_model_dir", lambda path: None)
    with pytest.raises(errors.BadSetting, match=r"torch can use none here \(.*ASYMPO_DEVICE=cpu") as caught:
        build_engine(tmp_path, EngineSettings(), "unused", CacheLoad())
    assert "\n" not in str(caught.value)


def test_driver_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def init() -> None:
        raise RuntimeError("The NVIDIA driver is too old (found version 12040). Please update\nmore")

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(
        errors.BadSetting, match=r"too old \(found version 12040\); torch is built for CUDA 13"
    ):
        require_gpu()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chosen", "is_cpu", "is_eager"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_graphs_follow_the_device_unless_a_setting_says_otherwise(
    tmp_path: Path, chosen: bool | None, is_cpu: bool, is_eager: bool
) -> None:
    pytest.importorskip("vllm")
    assert engine_args(tmp_path, EngineSettings(enforce_eager=chosen), "x", is_cpu).enforce_eager is is_eager


@pytest.mark.parametrize(
    ("machine", "asked", "is_cpu", "size"),
    [
        ("x86_64", 32, True, 32),
        ("x86_64", 16, True, 16),
        ("aarch64", 16, True, 32),
        ("aarch64", 48, True, 64),
        ("aarch64", 64, True, 64),
        ("aarch64", 16, False, None),
    ],
)
def test_cache_has_the_blocks_that_are_asked_for_and_the_processor_knows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    asked: int,
    is_cpu: bool,
    size: int | None,
) -> None:
    pytest.importorskip("vllm")
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert engine_args(tmp_path, EngineSettings(block_size=asked), "x", is_cpu).block_size == size


def test_engine_that_sleeps_needs_the_size_of_its_cache_and_little_free_memory(tmp_path: Path) -> None:
    sleeps = EngineSettings(enable_sleep_mode=True, gpu_memory_utilization=0.5)
    with pytest.raises(errors.BadSetting, match="enable_sleep_mode is on: give"):
        engine_args(tmp_path, sleeps, "x", False)
    args = engine_args(tmp_path, sleeps.model_copy(update={"kv_cache_gib": 2.0}), "x", False)
    assert args.enable_sleep_mode
    assert args.gpu_memory_utilization < 0.1
    assert args.kv_cache_memory_bytes == 2 * 2**30
    assert not engine_args(tmp_path, sleeps, "x", True).enable_sleep_mode
