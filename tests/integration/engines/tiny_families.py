"""Tiny random checkpoints of the families whose weights vLLM fuses, packs or derives others from."""

from pathlib import Path
from typing import Any

from tests.tiny_model import make_tiny_tokenizer

_SIZES: dict[str, Any] = {
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
FAMILIES: dict[str, dict[str, Any]] = {
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


def make_family(name: str, directory: Path, *, seed: int = 0) -> Path:
    """Writes a HF checkpoint directory in bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tiny_tokenizer()
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(**(_SIZES | FAMILIES[name] | ends))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
