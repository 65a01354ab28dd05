"""vLLM's attention on x86 processors with blocks of 16 tokens: its kernels have them, its backend not."""

from typing import Any

from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend


@register_backend(AttentionBackendEnum.CPU_ATTN)
class SmallBlocks(CPUAttentionBackend):
    """Takes the place of vLLM's own in every process that imports this module."""

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]
