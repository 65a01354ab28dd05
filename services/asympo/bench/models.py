"""Models that a benchmark can run without downloading anything: shapes by name, random weights."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from asympo.common.errors import BadSetting
from asympo.testing.tiny_model import load_tiny_tokenizer

_SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "qwen3-1.7b": {
        "model_type": "qwen3",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
}
MODEL_NAMES = tuple(_SHAPES)

_TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": None,
}
_EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
TINY_FAMILIES: dict[str, dict[str, Any]] = {
    "tied-llama": {"model_type": "llama", "head_dim": 32, "tie_word_embeddings": True},
    "llama": {"model_type": "llama", "head_dim": 32, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": False},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": False},
    "mixtral": {"model_type": "mixtral", "head_dim": 32, "num_local_experts": 4},
    "qwen3-moe": {"model_type": "qwen3_moe", "head_dim": 32, "num_experts": 4, **_EXPERTS},
    "deepseek-v2": {
        "model_type": "deepseek_v2",
        "num_key_value_heads": 2,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        **_EXPERTS,
    },
}
"""Families whose weights an engine fuses, packs or derives others from, at the smallest size it serves."""


def named_config(name: str) -> PretrainedConfig:
    """The config of a well-known model by our name for it; BadSetting names the choices."""
    if name not in _SHAPES:
        raise BadSetting(f"there is no model config {name}: choose from {', '.join(MODEL_NAMES)}")
    return AutoConfig.for_model(**_SHAPES[name])


def random_model(config: PretrainedConfig, *, device: torch.device) -> PreTrainedModel:
    """fp32 weights drawn from the config's initialisation."""
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def write_tiny_family(name: str, directory: Path) -> Path:
    """Writes a random model of a family of TINY_FAMILIES in bfloat16, with the tiny models' tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tiny_tokenizer(directory)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(**(_TINY | TINY_FAMILIES[name] | ends))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    return directory
