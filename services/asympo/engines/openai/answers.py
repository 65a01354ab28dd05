"""What servers answer, and what their errors mean to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import openai

from asympo.common.errors import AsympoError, BadSetting, EngineUnavailable, PromptRefused
from asympo.common.records import FinishReason
from asympo.engines.base import Sample, SamplingSettings

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
"""What ends a response that can be trained; the rest (`content_filter`, `abort`, …) leaves none."""


def read_answer(
    answer: Mapping[str, Any], *, sampling: SamplingSettings, tokenizer: Any, with_token_ids: bool
) -> Sample:
    """The one response of an answer. Raises EngineUnavailable where there is none."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EngineUnavailable("the server answered without a choice")
    choice = choices[0]
    text = choice.get("text")
    if text is None:
        text = (choice.get("message") or {}).get("content")
    text = text if isinstance(text, str) else ""
    reason = _REASONS.get(str(choice.get("finish_reason")), FinishReason.ABORT)
    usage = answer.get("usage") or {}
    token_ids = tuple(choice.get("token_ids") or ()) if with_token_ids else ()
    if token_ids and not sampling.stop:
        text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    return Sample(
        token_ids=token_ids,
        text=text,
        finish_reason=reason,
        stop_string="" if token_ids or reason is not FinishReason.STOP else _stop_string(choice),
        num_tokens=0 if token_ids else int(usage.get("completion_tokens") or 0),
    )


def _stop_string(choice: Mapping[str, Any]) -> str:
    """What ended a text, where the server says so: vLLM and SGLang do, each in a field of its own."""
    for name in ("stop_reason", "matched_stop"):
        if isinstance(said := choice.get(name), str):
            return said
    return ""


def explain(
    error: openai.OpenAIError, *, url: str = "", model: str = "", names: Sequence[str] = ()
) -> AsympoError:
    """BadSetting where a person must act, PromptRefused for a bad request, else EngineUnavailable."""
    said = _said(error)
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        return BadSetting(
            f"{url} refuses the API key ({error.status_code}): set OPENAI_API_KEY or openai.api_key_file "
            "to one that it knows"
        )
    if isinstance(error, openai.NotFoundError):
        has = f": it has {', '.join(names)}" if names else f" ({said})"
        return BadSetting(f"{url} has no model {model!r}, or no such route{has}; see openai.model")
    if isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError) or (
        isinstance(error, openai.APIStatusError) and error.status_code == 413
    ):
        return PromptRefused(said)
    return EngineUnavailable(f"{url} does not answer: {said}")


def _said(error: openai.OpenAIError) -> str:
    """One line of what the server said, its cause where it said nothing."""
    if isinstance(error, openai.APITimeoutError):
        return "it took too long"
    cause = error.__cause__
    words = str(cause) if isinstance(error, openai.APIConnectionError) and cause else str(error)
    return next(iter(words.strip().splitlines()), type(error).__name__)[:300]
