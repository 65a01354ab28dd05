"""How a vLLM engine is started: the model directory checked, threads, memory and arguments chosen."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asympo.common.checkpoints.digests import available_cores, tensor_spans
from asympo.common.context_length import context_length, short_range
from asympo.common.errors import BadModel, BadSetting, CorruptCheckpoint
from asympo.engines.settings import EngineSettings
from asympo.engines.vllm_device import gpu_environment, require_gpu
from asympo.engines.vllm_fork import EngineFork
from asympo.engines.vllm_load import CacheLoad
from asympo.local.heap import large_imports
from asympo.local.processor import has_native_bfloat16

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM


log = logging.getLogger(__name__)

NUM_PROBE_SLOTS = 2
"""Sequences above max_num_seqs that only probes use, so that a probe never waits for a response to end."""
_KERNEL_BLOCK_SIZE = 32
"""Tokens of a cache block for which all processors have kernels, as for its multiples."""
DEFAULT_CPU_KV_CACHE_GIB = 0.5
_HAS_SMALL_BLOCKS = ("x86_64", "amd64")
"""Processors whose kernels know blocks of 16 tokens, too."""
_SLEEPERS_SHARE = 0.05
"""vLLM wants so much of the GPU to be free at the start; its cache has a size of its own then."""

_GIB = 1 << 30


def check_model_dir(model_path: Path) -> None:
    """Raise BadModel in one sentence for what vLLM would answer with a page of traceback."""
    if not (model_path / "config.json").is_file():
        raise BadModel(f"{model_path} holds no config.json; a Hugging Face model directory is needed")
    try:
        json.loads((model_path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise BadModel(f"{model_path / 'config.json'} cannot be read: {error}") from error
    weights = sorted(model_path.glob("*.safetensors"))
    if not weights:
        raise BadModel(f"{model_path} holds no *.safetensors file")
    for path in weights:
        try:
            # Resolved because a Hugging Face cache keeps links to its blobs; policies are verified elsewhere.
            tensor_spans(path.resolve())
        except CorruptCheckpoint as error:
            raise BadModel(f"the model cannot be loaded: {error}") from error


def thread_environment(settings: EngineSettings) -> dict[str, str]:
    """Environment of the compute process on a CPU: how many threads, where, and that idle ones sleep."""
    num_cores = len(settings.cpu_ids or ()) or available_cores()
    num_threads = settings.num_threads or max(1, num_cores // settings.tensor_parallel_size)
    environment = {
        "OMP_NUM_THREADS": str(num_threads),
        # An idle OpenMP thread that spins takes the core from the learner on the same machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
    }
    if settings.tensor_parallel_size == 1:
        # The worker then lives in the engine's process: one process of several hundred MB less.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if settings.cpu_ids is not None:
            environment["GOMP_CPU_AFFINITY"] = " ".join(map(str, settings.cpu_ids))
    elif settings.cpu_ids is None:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    else:
        size = settings.tensor_parallel_size
        shares = (settings.cpu_ids[rank::size] for rank in range(size))
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, share)) for share in shares)
    return environment


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """`values` in os.environ, which vLLM's child processes inherit, for the duration of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def import_vllm() -> None:
    """Takes seconds the first time. Raises BadSetting."""
    # Both are read when vllm is imported.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        with large_imports():
            import vllm.platforms
            import vllm.v1.engine.async_llm  # noqa: F401  it brings all that an engine needs
    except ImportError as error:
        raise BadSetting(
            f"the engine 'vllm' needs vLLM, and importing it failed ({error}); install asympo[generator] or "
            "choose the engine 'simulated'"
        ) from error


def _is_built_for_cpus() -> bool:
    """Of the installed vLLM, without importing it: its package has another name, or a version of its own."""
    found = (each for name in ("vllm-cpu", "vllm") for each in distributions(name=name))
    return any("cpu" in f"{each.name} {each.version}" for each in found)


def fork_ahead(settings: EngineSettings) -> EngineFork | None:
    """Imports vLLM and forks a process for its engine; None where vLLM is missing or computes elsewhere.

    For a process that starts one engine, and has no other threads yet.
    """
    # OpenMP reads the environment when it is loaded, which torch does.
    if not _is_built_for_cpus() or settings.tensor_parallel_size > 1 or "torch" in sys.modules:
        return None
    threads = thread_environment(settings)
    with environment(threads), contextlib.suppress(BadSetting):
        import_vllm()
        with large_imports():
            import vllm.v1.engine.core
            import vllm.v1.worker.cpu_worker  # noqa: F401  both are the engine's

        return EngineFork(threads)
    return None


def build_engine(
    model_path: Path,
    settings: EngineSettings,
    worker_extension_cls: str,
    load: CacheLoad,
    fork: EngineFork | None = None,
) -> AsyncLLM:
    """Start vLLM on a model directory; blocks for its whole start. Raises BadSetting."""
    check_model_dir(model_path)
    import_vllm()
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    is_cpu = current_platform.is_cpu()
    if is_cpu:
        values = thread_environment(settings)
    else:
        require_gpu()
        values, sentence = gpu_environment(os.environ)
        log.info("%s", sentence)
    with environment(values):
        try:
            config = engine_args(model_path, settings, worker_extension_cls, is_cpu).create_engine_config()
        except (ValueError, OSError, KeyError, ImportError, RuntimeError) as error:
            raise BadModel(f"vLLM cannot serve {model_path}: {first_line(error)}") from error
        check_row_length(config.model_config)
        _log_choices(config, values)
        process: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if fork is not None and fork.is_waiting and fork.threads == values:
            process = fork.given_to_vllm()
        try:
            with process:
                return AsyncLLM.from_vllm_config(config, disable_log_stats=True, stat_loggers=[load.logger])
        except (RuntimeError, ValueError, OSError) as error:
            raise BadModel(
                f"vLLM did not start on {model_path} (its own messages above say why): {first_line(error)}"
            ) from error


def check_row_length(model_config: Any) -> None:
    """Raise BadSetting where LongRoPE would scale the positions of short rows, too, which no learner does."""
    served, limit = model_config.max_model_len, short_range(model_config.hf_config)
    if limit is not None and served > limit:
        raise BadSetting(
            f"vLLM would serve {served} tokens in a row, and this model then has other rotary factors in "
            f"shorter rows, too, than the learner trains it with: set vllm.max_model_len to {limit} or less"
        )


def engine_args(
    model_path: Path, settings: EngineSettings, worker_extension_cls: str, is_cpu: bool
) -> AsyncEngineArgs:
    """Our settings in vLLM's words."""
    from vllm import AsyncEngineArgs

    optional: dict[str, Any] = {}
    sleeps = settings.enable_sleep_mode and not is_cpu
    if sleeps and settings.kv_cache_gib is None:
        raise BadSetting(
            "vllm.enable_sleep_mode is on: give vllm.kv_cache_gib, because what is free of the GPU at the "
            "start says nothing of what is free later"
        )
    if settings.kv_cache_gib is not None or is_cpu:
        size_gib = DEFAULT_CPU_KV_CACHE_GIB if settings.kv_cache_gib is None else settings.kv_cache_gib
        optional["kv_cache_memory_bytes"] = int(size_gib * _GIB)
    if settings.max_num_batched_tokens is not None:
        optional["max_num_batched_tokens"] = settings.max_num_batched_tokens
    if is_cpu:
        optional["block_size"] = _cpu_block_size(settings.block_size)
    return AsyncEngineArgs(
        model=str(model_path),
        dtype=_dtype(settings, is_cpu),  # type: ignore[arg-type]
        # Graphs make decoding several times quicker on a GPU; on a CPU there are none.
        enforce_eager=is_cpu if settings.enforce_eager is None else settings.enforce_eager,
        scheduling_policy="priority",
        max_num_seqs=settings.max_num_seqs + NUM_PROBE_SLOTS,
        max_model_len=-1 if settings.max_model_len is None else settings.max_model_len,
        gpu_memory_utilization=_SLEEPERS_SHARE if sleeps else settings.gpu_memory_utilization,
        tensor_parallel_size=settings.tensor_parallel_size,
        # On a CPU it falls asleep all the same, and gives nothing back.
        enable_sleep_mode=sleeps,
        trust_remote_code=False,
        # The door would otherwise fill what a request leaves out (top_k, repetition_penalty, …) from the
        # model's file, and nothing of that is in the run's settings. Its end-of-sequence ids are read all
        # the same.
        generation_config="vllm",
        enable_prefix_caching=True,
        worker_extension_cls=worker_extension_cls,
        use_tqdm_on_load=False,
        disable_log_stats=True,
        seed=settings.seed,
        **optional,
    )


def _cpu_block_size(size: int) -> int:
    if size % _KERNEL_BLOCK_SIZE == 0 or platform.machine().lower() in _HAS_SMALL_BLOCKS:
        return size
    rounded = size + _KERNEL_BLOCK_SIZE - size % _KERNEL_BLOCK_SIZE
    log.info(
        "vLLM's cache has blocks of %d tokens, not %d: this processor has no kernel for those", rounded, size
    )
    return rounded


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic puts the number of errors first and the reason behind "Value error, ".
    reasons = [line for line in lines if line.startswith("Value error, ")]
    text = (reasons or lines or [type(error).__name__])[0].removeprefix("Value error, ")
    return text.split(" [type=")[0]


def _dtype(settings: EngineSettings, is_cpu: bool) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    return "bfloat16" if not is_cpu or has_native_bfloat16() else "float32"


def _log_choices(config: Any, values: Mapping[str, str]) -> None:
    log.info(
        "vLLM: %s, %s, at most %d responses at once, KV cache %s, %s",
        config.model_config.dtype,
        "eager" if config.model_config.enforce_eager else "compiled, with graphs",
        config.scheduler_config.max_num_seqs - NUM_PROBE_SLOTS,
        f"{(config.cache_config.kv_cache_memory_bytes or 0) / _GIB:.2f} GiB"
        if config.cache_config.kv_cache_memory_bytes
        else f"{config.cache_config.gpu_memory_utilization:.0%} of the GPU's memory less weights",
        " ".join(f"{name}={value}" for name, value in values.items()),
    )
    served, hf_config = config.model_config.max_model_len, config.model_config.hf_config
    limit = short_range(hf_config) or context_length(hf_config)
    if limit is not None and served < limit:
        log.info("vLLM serves %d tokens in a row; vllm.max_model_len can be up to %d", served, limit)
