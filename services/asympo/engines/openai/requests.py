"""What a server is asked for one response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asympo.common.errors import PromptRefused
from asympo.engines.base import SamplingSettings


def prompt_of(
    prompt_as: str, prompt_ids: Sequence[int], messages: Sequence[Mapping[str, Any]] | None, tokenizer: Any
) -> dict[str, Any]:
    """The prompt as `token_ids`, `text` or `messages`. Raises PromptRefused where there are no messages."""
    if prompt_as == "token_ids":
        return {"prompt": list(prompt_ids)}
    if prompt_as == "text":
        return {"prompt": tokenizer.decode(list(prompt_ids), skip_special_tokens=False)}
    if messages is None:
        raise PromptRefused(
            "openai.prompt_as is messages, and this prompt is plain text, begins its answer or has tools: "
            "set it to token_ids or text"
        )
    return {"messages": [dict(message) for message in messages]}


def sampling_of(sampling: SamplingSettings) -> dict[str, Any]:
    """What OpenAI's protocol has of the sampling settings."""
    body: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }
    return body | ({"stop": list(sampling.stop)} if sampling.stop else {})


def extras_of(sampling: SamplingSettings) -> dict[str, Any]:
    """What engines take beyond it. Some have defaults of their own, or the model's, that cut tokens off."""
    extras: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    # Prompts as text hold their control tokens already.
    extras |= {"add_special_tokens": False, "return_token_ids": True}
    return extras | ({"min_tokens": sampling.min_tokens} if sampling.min_tokens else {})
