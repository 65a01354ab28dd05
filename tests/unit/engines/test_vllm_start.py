"""What is decided before vLLM starts; none of it needs vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from asympo.common import errors
from asympo.common.checkpoints import digests
from asympo.common.context_length import PlainConfig
from asympo.engines import vllm_start
from asympo.engines.choice import import_engine
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm_start import (
    check_model_dir,
    check_row_length,
    environment,
    first_line,
    thread_environment,
)
from asympo.generator.settings import GeneratorSettings


def test_one_worker_shares_the_engine_process_and_its_idle_threads_sleep() -> None:
    values = thread_environment(EngineSettings(num_threads=2))
    assert values["OMP_NUM_THREADS"] == "2"
    assert values["OMP_WAIT_POLICY"] == "PASSIVE"
    assert values["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "GOMP_CPU_AFFINITY" not in values


@pytest.mark.parametrize(
    ("quota", "num_threads"), [("max 100000", 64), ("350000 100000", 4), ("10000 100000", 1), ("", 64)]
)
def test_worker_that_is_not_bound_keeps_to_its_containers_quota(
    quota: str, num_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(digests, "_CPU_MAX", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    assert thread_environment(EngineSettings())["OMP_NUM_THREADS"] == str(num_threads)


def test_bound_worker_has_a_thread_for_each_core() -> None:
    values = thread_environment(EngineSettings(cpu_ids=(1, 3)))
    assert (values["OMP_NUM_THREADS"], values["GOMP_CPU_AFFINITY"]) == ("2", "1 3")


def test_tensor_parallel_workers_split_the_cores() -> None:
    values = thread_environment(EngineSettings(cpu_ids=(0, 1, 2, 3), tensor_parallel_size=2))
    assert values["VLLM_CPU_OMP_THREADS_BIND"] == "0,2|1,3"
    assert values["OMP_NUM_THREADS"] == "2"


def test_environment_is_restored_even_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYMPO_TEST_A", "before")
    block = environment({"ASYMPO_TEST_A": "in", "ASYMPO_TEST_B": "in"})
    block.__enter__()
    assert os.environ["ASYMPO_TEST_A"] == os.environ["ASYMPO_TEST_B"] == "in"
    with pytest.raises(RuntimeError):
        block.gen.throw(RuntimeError())  # what a raising body does
    assert os.environ["ASYMPO_TEST_A"] == "before"
    assert "ASYMPO_TEST_B" not in os.environ


def test_row_is_no_longer_than_the_range_in_which_long_rope_is_what_the_learner_trains() -> None:
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 4096}
    hf_config = PlainConfig({"max_position_embeddings": 131072, "rope_scaling": rope})
    check_row_length(SimpleNamespace(max_model_len=4096, hf_config=hf_config))
    with pytest.raises(errors.BadSetting, match=r"serve 4097 .*: set vllm.max_model_len to 4096 or less"):
        check_row_length(SimpleNamespace(max_model_len=4097, hf_config=hf_config))
    plain = PlainConfig({"max_position_embeddings": 8192, "rope_theta": 1e4})
    check_row_length(SimpleNamespace(max_model_len=8192, hf_config=plain))


def write_model(directory: Path, *, config: str = "{}", weights: bytes | None = None) -> Path:
    (directory / "config.json").write_text(config)
    if weights is not None:
        (directory / "model.safetensors").write_bytes(weights)
    return directory


def safetensors(num_bytes: int) -> bytes:
    header = json.dumps({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(num_bytes)


def test_good_model_directory_is_accepted_also_through_links(tmp_path: Path) -> None:
    directory = write_model(tmp_path)
    (tmp_path / "blob").write_bytes(safetensors(8))
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    check_model_dir(directory)


@pytest.mark.parametrize(
    ("config", "weights", "message"),
    [
        ("{", safetensors(8), "config.json cannot be read"),
        ("{}", None, "holds no"),
        ("{}", safetensors(5), "holds .* bytes where its header says"),
        ("{}", b"\xff" * 64, "truncated or not a safetensors file"),
    ],
)
def test_unreadable_model_directory_is_named_in_one_sentence(
    tmp_path: Path, config: str, weights: bytes | None, message: str
) -> None:
    with pytest.raises(errors.BadModel, match=message) as caught:
        check_model_dir(write_model(tmp_path, config=config, weights=weights))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.BadModel, match="Hugging Face model directory"):
        check_model_dir(tmp_path)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "1 validation error for X\n  Value error, max_model_len is wrong. [type=value_error]\n",
            "max_model_len",
        ),
        ("\n\nfirst\nsecond", "first"),
        ("", "RuntimeError"),
    ],
)
def test_first_line_is_the_one_that_says_something(text: str, line: str) -> None:
    assert first_line(RuntimeError(text)).startswith(line)
    assert "[type=" not in first_line(RuntimeError(text))


@pytest.mark.parametrize(("engine", "num_imports"), [("vllm", 1), ("simulated", 0), ("openai", 0)])
def test_libraries_of_vllm_are_imported_ahead_and_missing_ones_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, engine: str, num_imports: int
) -> None:
    tried = []

    def fail() -> None:
        tried.append(engine)
        raise errors.BadSetting("not installed")

    monkeypatch.setattr(vllm_start, "import_vllm", fail)
    import_engine(
        GeneratorSettings.load(["--engine", engine, "--openai.base-url", "http://localhost/v1"], environ={})
    )
    assert len(tried) == num_imports


_HANGS = """
import asyncio, pathlib, threading
from asympo.engines import vllm
from asympo.engines.settings import EngineSettings
vllm.build_engine = lambda *_: threading.Event().wait()
engine = vllm.VllmEngine(settings=EngineSettings(start_timeout_seconds=0.2))
asyncio.run(engine.start(model_path=pathlib.Path("m")))
"""


def test_start_that_hangs_ends_the_process_with_its_sentence() -> None:
    done = subprocess.run([sys.executable, "-c", _HANGS], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "vLLM did not start on m within 0 s" in done.stderr
