"""`asympo bench models`: every family of causal language models in the installed transformers, checked."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from asympo.common.errors import BadModel
from asympo.learner.model.check import check_model, groups_for_check, measure, one_thread
from asympo.learner.model.forward_path import ForwardPath
from asympo.learner.model.miniature import FAMILY_ERRORS, CannotTry, make_miniature
from asympo.learner.model.policy import Policy
from asympo.learner.step.compute import set_up_torch

_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [4.0] * 48,
    "short_factor": [1.0 + 0.05 * index for index in range(48)],
    "original_max_position_embeddings": 4096,
}
_YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
_SLIDING = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 4}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3_text with sliding windows only": ("gemma3_text", {"layer_types": ["sliding_attention"] * 26}),
    "granite with scaled logits": ("granite", {"logits_scaling": 8.0, "residual_multiplier": 0.2}),
    "lfm2 with convolutions": (
        "lfm2",
        {"layer_types": ["conv", "conv", "full_attention", "conv"], "num_hidden_layers": 4},
    ),
    "llama with dynamic RoPE": ("llama", {"rope_parameters": _DYNAMIC}),
    "llama with Llama-3 RoPE": ("llama", {"rope_parameters": _LLAMA3, "max_position_embeddings": 131072}),
    "phi3 with LongRoPE": ("phi3", {"rope_parameters": _LONGROPE, "max_position_embeddings": 131072}),
    "phimoe with sliding windows": ("phimoe", {"sliding_window": 2048}),
    "qwen2 with sliding windows": ("qwen2", _SLIDING),
    "qwen2_moe with sliding windows": ("qwen2_moe", _SLIDING),
    "qwen3 with YaRN": ("qwen3", {"rope_parameters": _YARN, "max_position_embeddings": 131072}),
}
"""Switches that a family's default leaves off: name in the table, family, what is switched."""

_GAPS: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"] * 20},
    "dbrx": {"attn_config": {"rope_theta": 5e5, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"head_dim": 128, "n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2},
    "falcon_h1": {"mamba_d_ssm": 1536, "mamba_n_heads": 24, "mamba_d_head": 64},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"] * 8},
    "ministral": {"head_dim": 128, "sliding_window": 32768},
    "nemotron": {"num_key_value_heads": 8},
    "xmod": {"default_language": "en_XX"},
}
"""What checkpoints of a family have and its default config lacks."""


def family_names() -> list[str]:
    """Families by transformers' names, and variants of some."""
    return sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS])


def family_config(name: str) -> PretrainedConfig:
    """As checkpoints of the family have it."""
    family, switches = VARIANTS.get(name, (name, {}))
    config = AutoConfig.for_model(family, **_GAPS.get(family, {}), **switches)
    if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        config.is_decoder = True
    return config


@one_thread()
def check_family(name: str) -> dict[str, Any]:
    """One row: the way it is computed, its errors, or the sentence of its refusal."""
    row: dict[str, Any] = {
        "family": name,
        "path": "refused",
        "nll_error": None,
        "gradient_error": None,
        "bfloat16": None,
    }
    start = time.perf_counter()
    try:
        config = family_config(name)
    except FAMILY_ERRORS as error:
        reason = f"its default config cannot be made: {str(error).partition(chr(10))[0]}"
        return {**row, "path": "not tried", "reason": reason, "gradient_checkpointing": None, "seconds": 0.0}
    reasons = []
    for is_checkpointed in (True, False):
        try:
            checked = check_model(config, is_checkpointed=is_checkpointed)
        except BadModel as error:
            reasons.append(str(error))
            continue
        if checked.difference is None:
            row["path"] = "not tried"
        else:
            row |= {
                "path": path_name(checked.path),
                "nll_error": checked.difference.nll,
                "gradient_error": checked.difference.gradient,
                "bfloat16": runs_in_bfloat16(config, checked.path),
            }
        reasons += checked.refused[:1]
        break
    row["gradient_checkpointing"] = None if row["path"] in ("refused", "not tried") else is_checkpointed
    return {**row, "reason": reasons[0] if reasons else "", "seconds": time.perf_counter() - start}


def runs_in_bfloat16(config: PretrainedConfig, path: ForwardPath) -> bool | None:
    """Whether its code can multiply in bfloat16 with float32 weights; None if that could not be tried."""
    try:
        model = make_miniature(config, dtype=torch.float32, is_narrow=True).eval()
        policy = Policy(model=model, compute_dtype=torch.bfloat16, path=path)
        measured = measure(policy, groups_for_check(), list(model.parameters()))
    except CannotTry:
        return None
    except FAMILY_ERRORS:
        return False
    return bool(torch.isfinite(measured.nll_R).all())


def path_name(path: ForwardPath) -> str:
    """As the table has it."""
    if path.is_own:
        return f"own forward, {path.attention}"
    if path.alone_above is None:
        return "packed"
    return "one by one" if not path.alone_above else f"packed up to {path.alone_above} tokens"


def measure_families(names: Sequence[str], *, say: Callable[[str], None]) -> dict[str, Any]:
    """All families, and how many are computed in each way."""
    set_up_torch(seed=0, num_threads=1)  # deterministic algorithms, as learners have them
    rows = []
    for name in names:
        rows.append(check_family(name))
        say(f"{name}: {rows[-1]['path']}")
    counts = Counter(row["path"].partition(" up to")[0].partition(",")[0] for row in rows)
    return {"transformers": transformers.__version__, "counts": dict(counts), "families": rows}
