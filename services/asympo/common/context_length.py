"""How many tokens a model takes in a row; read from its config, without loading it."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

_WITHOUT_POSITIONS = frozenset({"bloom", "jamba", "kimi_linear", "nemotron_h", "rwkv", "zamba"})
"""Attention with linear biases or beside a recurrence, whatever length their configs also name."""
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
_WINDOWED = frozenset({"sliding_attention", "chunked_attention", "linear_attention", "recurrent", "conv"})
"""Layers in which no two tokens far from each other meet."""
_FINAL = frozenset({"gemma3", "gemma3_text"})
"""Their factor is part of the length already."""


class PlainConfig:
    """A config.json as far as the length is concerned, without the seconds that transformers takes."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        text = dict(values.get("text_config") or values)
        if "rope_parameters" not in text and ("rope_theta" in text or text.get("rope_scaling")):
            text["rope_parameters"] = {"rope_type": "default", **(text.get("rope_scaling") or {})}
        self._text = SimpleNamespace(**{"model_type": "", **text})

    def get_text_config(self) -> Any:
        """As transformers' configs have it."""
        return self._text


def context_length(config: Any) -> int | None:
    """Most tokens in a row, prompt and response; None where nothing limits them.

    `config` is transformers'. What scales rotary positions counts; under windows they have no limit, as
    distances stay small; a table of learned positions ends where it ends.
    """
    text = config.get_text_config()
    own = next((length for name in _LENGTHS if (length := getattr(text, name, None))), None)
    if own is None or own < 0 or text.model_type in _WITHOUT_POSITIONS or _is_biased(text):
        return None
    ropes = list(_ropes(getattr(text, "rope_parameters", None)))
    if not ropes:
        return int(own)
    if _is_windowed(text):
        return None
    if text.model_type in _FINAL:
        return int(own)
    return max(_scaled(own, rope) for rope in ropes)


def short_range(config: Any) -> int | None:
    """Most tokens for which LongRoPE has factors of their own; None with other positions."""
    text = config.get_text_config()
    for rope in _ropes(getattr(text, "rope_parameters", None)):
        if rope.get("rope_type") == "longrope":
            own = getattr(text, "original_max_position_embeddings", None)
            return int(rope.get("original_max_position_embeddings") or own or text.max_position_embeddings)
    return None


def what_does_not_fit(config: Any, *, num_prompt_tokens: int, max_tokens: int) -> str | None:
    """A sentence when a prompt of this length and the longest response are more than the model takes."""
    limit = context_length(config)
    if limit is None or num_prompt_tokens + max_tokens <= limit:
        return None
    return (
        f"prompt 0 has {num_prompt_tokens} tokens and sampling.max_tokens is {max_tokens}, but the model "
        f"takes {limit} in a row: longer responses are cut off there"
    )


def _scaled(own: int, rope: Mapping[str, Any]) -> int:
    factor = rope.get("factor") or 1.0
    # Those that name the length before scaling may have the scaled one in the config already.
    return max(own, int((rope.get("original_max_position_embeddings") or own) * factor))


def _ropes(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """One for all layers, or one for each kind of layer."""
    if not isinstance(parameters, Mapping) or not parameters:
        return
    if any(isinstance(value, Mapping) for value in parameters.values()):
        yield from (value for value in parameters.values() if isinstance(value, Mapping))
    else:
        yield parameters


def _is_biased(text: Any) -> bool:
    """Linear biases or nothing at all in place of positions."""
    attention = getattr(text, "attn_config", None)
    return bool(
        getattr(text, "alibi", False)
        or getattr(attention, "alibi", False)
        or getattr(text, "position_embedding_type", None) in ("alibi", "nope")
    )


def _is_windowed(text: Any) -> bool:
    """Whether every layer sees a window only."""
    layers = getattr(text, "layer_types", None)
    if layers:
        return set(layers) <= _WINDOWED
    return bool(getattr(text, "sliding_window", None)) and getattr(text, "use_sliding_window", True)
