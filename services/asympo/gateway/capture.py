"""What an agent said and heard, turn by turn, as the token ids of one response."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asympo.common.errors import AsympoError
from asympo.common.records import FinishReason, Response

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "tool_calls": FinishReason.STOP,
    "function_call": FinishReason.STOP,
    "length": FinishReason.LENGTH,
}


class NotTrainable(AsympoError):
    """What the agent did cannot be written as one response; the message says why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        """One of a closed set: no_turns, no_token_ids, history_rewritten, unknown_end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One request and its answer."""

    prompt_ids: tuple[int, ...]
    """All that the policy was shown, as the engine says; empty when it does not."""
    answer_ids: tuple[int, ...]
    """All that it sampled, as the engine says; empty when it does not."""
    finish_reason: str
    """As the engine says."""


class TurnReader:
    """Collects a turn from the answer of a chat completion, streamed or whole."""

    def __init__(self) -> None:
        self._prompt_ids: list[int] = []
        self._answer_ids: list[int] = []
        self._finish_reason = ""

    def read(self, body: Any) -> None:
        """One body, or one event of a stream."""
        if not isinstance(body, dict):
            return
        self._prompt_ids = body.get("prompt_token_ids") or self._prompt_ids
        for choice in body.get("choices") or ():
            self._prompt_ids = choice.get("prompt_token_ids") or self._prompt_ids
            self._answer_ids += choice.get("token_ids") or ()
            self._finish_reason = choice.get("finish_reason") or self._finish_reason

    @property
    def turn(self) -> Turn | None:
        """The turn; None unless its end was seen."""
        if not self._finish_reason:
            return None
        return Turn(
            prompt_ids=tuple(self._prompt_ids),
            answer_ids=tuple(self._answer_ids),
            finish_reason=self._finish_reason,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """Turns that each extend the one before, as one sequence."""

    token_ids: tuple[int, ...]
    """All that was shown and sampled, in order."""
    num_prompt_tokens: int
    """Those shown before the first answer."""
    is_sampled: tuple[bool, ...]
    """One flag for each token: sampled by the policy."""
    finish_reason: FinishReason
    """Of the last turn."""

    def response(self, *, after: int, reward: float) -> Response:
        """What follows the group's prompt of `after` tokens; what was shown is context, not a target."""
        return Response(
            token_ids=self.token_ids[after:],
            reward=reward,
            finish_reason=self.finish_reason,
            trained_token_mask=self.is_sampled[after:],
        )


def conversation_of(turns: Sequence[Turn]) -> Conversation:
    """One sequence of all turns; raises NotTrainable when they make none.

    A later request must begin with all that the policy saw and said before: training a history that was
    rewritten as if it had been seen would train tokens on what never preceded them.
    """
    if not turns:
        raise NotTrainable("no_turns", "the session has no finished answer")
    token_ids: list[int] = []
    is_sampled: list[bool] = []
    for number, turn in enumerate(turns, start=1):
        if not turn.prompt_ids or not turn.answer_ids:
            raise NotTrainable("no_token_ids", f"the engine gave no token ids for turn {number}")
        if turn.finish_reason not in _FINISH_REASONS:
            raise NotTrainable("unknown_end", f"turn {number} ended with {turn.finish_reason!r}")
        if list(turn.prompt_ids[: len(token_ids)]) != token_ids:
            raise NotTrainable(
                "history_rewritten", f"the request of turn {number} does not begin with what was said before"
            )
        shown = turn.prompt_ids[len(token_ids) :]
        token_ids += [*shown, *turn.answer_ids]
        is_sampled += [False] * len(shown) + [True] * len(turn.answer_ids)
    return Conversation(
        token_ids=tuple(token_ids),
        num_prompt_tokens=len(turns[0].prompt_ids),
        is_sampled=tuple(is_sampled),
        finish_reason=_FINISH_REASONS[turns[-1].finish_reason],
    )


def shared_prompt(conversations: Sequence[Conversation]) -> tuple[int, ...]:
    """The longest beginning that all were shown before their first answer."""
    shown = [each.token_ids[: each.num_prompt_tokens] for each in conversations]
    return tuple(_common(shown))


def _common(sequences: Sequence[Sequence[int]]) -> Iterator[int]:
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            return
        yield tokens[0]
