"""What vLLM says of its KV cache after each of its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.metrics.loggers import StatLoggerBase


class CacheLoad:
    """The newest share of the cache that is held, and preemptions so far."""

    def __init__(self) -> None:
        self.ratio = 0.0
        self.num_preemptions = 0

    def logger(self, config: VllmConfig, engine_index: int = 0) -> StatLoggerBase:
        """The factory that vLLM takes; its own loggers stay off."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        load = self

        class Logger(StatLoggerBase):
            def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None: ...

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                if scheduler_stats is not None:
                    load.ratio = scheduler_stats.kv_cache_usage
                if iteration_stats is not None:
                    load.num_preemptions += iteration_stats.num_preempted_reqs

            def log_engine_initialized(self) -> None: ...

        return Logger(config, engine_index)
