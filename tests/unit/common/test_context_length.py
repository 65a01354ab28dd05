"""How long a row may be, for every way in which models know positions."""

from typing import Any

import pytest
import transformers
from asympo.common.context_length import context_length, what_does_not_fit


def llama(rope: dict[str, Any] | None = None, **changes: Any) -> Any:
    given = {} if rope is None else {"rope_parameters": {"rope_theta": 1e4, **rope}}
    return transformers.LlamaConfig(**{"max_position_embeddings": 2048, **given, **changes})


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (llama(), 2048),
        (llama({"rope_type": "linear", "factor": 4.0}), 8192),
        (llama({"rope_type": "dynamic", "factor": 2.5}), 5120),
        (llama({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}), 8192),
        (llama({"rope_type": "yarn", "factor": 4.0}), 8192),
        (llama({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}), 2048),
        (
            llama(
                {
                    "rope_type": "llama3",
                    "factor": 2.0,
                    "original_max_position_embeddings": 512,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                }
            ),
            2048,
        ),
        (llama({"rope_type": "proportional", "partial_rotary_factor": 0.25}), 2048),
        (
            transformers.Phi3Config(
                max_position_embeddings=131072,
                original_max_position_embeddings=4096,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 48,
                    "long_factor": [2.0] * 48,
                    "original_max_position_embeddings": 4096,
                },
            ),
            131072,
        ),
        (transformers.MistralConfig(max_position_embeddings=2048, sliding_window=64), None),
        (transformers.MistralConfig(max_position_embeddings=2048, sliding_window=None), 2048),
        (transformers.Qwen2Config(max_position_embeddings=2048, sliding_window=64), 2048),
        (
            transformers.Qwen2Config(
                max_position_embeddings=2048, sliding_window=64, use_sliding_window=True, max_window_layers=0
            ),
            None,
        ),
        (transformers.Gemma2Config(max_position_embeddings=2048, sliding_window=64), 2048),
        (
            transformers.Gemma3TextConfig(
                max_position_embeddings=131072,
                rope_parameters={
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            ),
            131072,
        ),
        (transformers.Gemma3Config(text_config={"max_position_embeddings": 4096}), 4096),
        (transformers.GPT2Config(n_positions=256), 256),
        (transformers.OPTConfig(max_position_embeddings=256), 256),
        (transformers.GPTNeoConfig(max_position_embeddings=256), 256),
        (transformers.DbrxConfig(max_seq_len=512), 512),
        (transformers.BloomConfig(), None),
        (transformers.MptConfig(), None),
        (transformers.MptConfig(attn_config={"alibi": False}, max_seq_len=256), 256),
        (transformers.FalconConfig(alibi=True), None),
        (transformers.FalconConfig(alibi=False), 2048),
        (transformers.MambaConfig(), None),
        (transformers.JambaConfig(), None),
        (transformers.RecurrentGemmaConfig(), None),
    ],
)
def test_context_length(config: Any, length: int | None) -> None:
    assert context_length(config) == length


def test_old_spelling_of_rope_scaling_counts() -> None:
    config = llama(rope_scaling={"type": "linear", "factor": 2.0})
    assert context_length(config) == 4096


def test_what_does_not_fit_is_said() -> None:
    assert what_does_not_fit(llama(), num_prompt_tokens=1024, max_tokens=1024) is None
    assert what_does_not_fit(transformers.BloomConfig(), num_prompt_tokens=1, max_tokens=10**6) is None
    told = what_does_not_fit(llama(), num_prompt_tokens=1025, max_tokens=1024)
    assert told is not None
    assert "takes 2048 in a row" in told
