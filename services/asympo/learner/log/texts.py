"""Token ids for records that came as text."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from asympo.common.errors import InvalidRecord
from asympo.common.records import FinishReason, Prompt, Response
from asympo.tasks.encoding import (
    TextRefused,
    encode_prompt,
    encode_response,
    frame_of,
    has_control_tokens,
)

_LEAST_CHARS, _CHARS_PER_TOKEN, _MAX_CHARS = 16 * 1024, 32, 2**20
"""A text that is longer than this allows cannot fit into a row of tokens."""


class RecordTexts:
    """Tokenises what producers wrote as text; raises InvalidRecord where that gives nothing to train.

    A prompt that the model's chat template has rendered keeps its control tokens. In any other text, and in
    every response, what is spelt like one stays text.
    """

    def __init__(
        self,
        *,
        tokenizer: Any,
        vocab_size: int,
        end_ids: Collection[int] = (),
        stop: Sequence[str] = (),
        max_tokens: int | None = None,
    ) -> None:
        """`end_ids` stop the model, `stop` are the run's stop strings, `max_tokens` fit in a row."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        own = tokenizer.eos_token_id
        self._end_ids = frozenset(end_ids) | (frozenset() if own is None else {own})
        self._stop = tuple(stop)
        fitting = _MAX_CHARS if max_tokens is None else _LEAST_CHARS + max_tokens * _CHARS_PER_TOKEN
        self._max_chars = min(_MAX_CHARS, fitting)

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids of a prompt without any."""
        self._measure("prompt", prompt.text)
        return self._checked("prompt", lambda: encode_prompt(prompt.text, self._tokenizer, is_own=False))

    def response_ids(self, response: Response, *, prompt_ids: Sequence[int]) -> tuple[int, ...]:
        """Ids of a response without any, with the end-of-sequence token if and only if it was sampled."""
        self._measure("a response", response.text)
        text, end = response.text, self._end_of(response, prompt_ids)
        if end is not None:
            text = text.removesuffix(self._spelt(end))
        return self._checked(
            "a response",
            lambda: (encode_response(text, self._tokenizer) if text else []) + ([] if end is None else [end]),
        )

    def _end_of(self, response: Response, prompt_ids: Sequence[int]) -> int | None:
        """The token that ended a finished response; text need not show it."""
        if response.finish_reason is not FinishReason.STOP or response.stop_string:
            return None
        shown = [end for end in self._end_ids if response.text.endswith(self._spelt(end))]
        if shown:
            return max(shown, key=lambda end: len(self._spelt(end)))
        if self._stop:
            # A stop string may have ended it and been cut off: train nothing that may not have been sampled.
            return None
        if has_control_tokens(prompt_ids, self._tokenizer):
            turn_ends = frame_of(self._tokenizer).turn_ends
            return next((end for end in turn_ends if end in self._end_ids), self._tokenizer.eos_token_id)
        own: int | None = self._tokenizer.eos_token_id
        return own

    def _measure(self, what: str, text: str) -> None:
        """Before it is tokenised: megabytes take seconds in which nothing is trained."""
        if len(text) > self._max_chars:
            raise InvalidRecord(f"{what} has a text of {len(text)} characters, more than {self._max_chars}")

    def _spelt(self, token_id: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token_id))

    def _checked(self, what: str, encode: Callable[[], list[int]]) -> tuple[int, ...]:
        try:
            ids = tuple(encode())
        except TextRefused as error:
            raise InvalidRecord(f"{what} has no token ids: {error}") from error
        if not ids:
            raise InvalidRecord(f"{what} has no tokens")
        if max(ids) >= self._vocab_size:
            raise InvalidRecord(f"text gives token id {max(ids)}, the model has {self._vocab_size}")
        return ids
