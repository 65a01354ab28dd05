"""What an agent said and heard, turn by turn, as the token ids of one response."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from asympo.common.errors import AsympoError
from asympo.common.records import MAX_RESPONSE_TOKENS, MAX_SEGMENTS, FinishReason, Response, ResponseSegment

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
        """One of a closed set: no_turns, no_token_ids, history_rewritten, too_long, unknown_end."""


class BadAnswer(AsympoError):
    """An answer that makes no sense; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One request and its answer."""

    prompt_ids: "array[int]"
    """All that the policy was shown, as the engine says; empty when it does not."""
    answer_ids: "array[int]"
    """All that it sampled, as the engine says; empty when it does not."""
    finish_reason: str
    """As the engine says."""


class TurnReader:
    """Collects a turn from the answer of a completion or a response, streamed or whole."""

    def __init__(self) -> None:
        self._prompt_ids = array("I")
        self._answer_ids = array("I")
        self._finish_reason = ""
        self._has_several = False

    def read_whole(self, content: bytes) -> None:
        """A body that is all of an answer; raises BadAnswer."""
        self.read_json(content)
        if self.turn is None:
            raise _bad_answer("it does not say how it ended", content)

    def read_json(self, content: bytes) -> None:
        """One body, or one event of a stream; raises BadAnswer."""
        try:
            self.read(from_json(content))
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
            raise _bad_answer(str(error), content) from error

    def read(self, body: Any) -> None:
        """The same, parsed."""
        if not isinstance(body, dict):
            raise TypeError("it is no JSON object")
        if body.get("type") == "response.completed" or body.get("object") == "response":
            self._read_response(body.get("response") or body)
            return
        self._prompt_ids = _token_ids(body, "prompt_token_ids") or self._prompt_ids
        for choice in body.get("choices") or ():
            self._has_several |= bool(choice.get("index"))
            self._prompt_ids = _token_ids(choice, "prompt_token_ids") or self._prompt_ids
            self._answer_ids += _token_ids(choice, "token_ids")
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
            if not isinstance(self._finish_reason, str):
                raise TypeError("finish_reason is no text")

    def _read_response(self, body: dict[str, Any]) -> None:
        """The whole of it; the engine's own tools, of which a door has none, would make it several turns."""
        shown, said = body.get("input_messages") or [], body.get("output_messages") or []
        if len(shown) == len(said) == 1:
            self._prompt_ids, self._answer_ids = (_token_ids(each, "tokens") for each in (shown[0], said[0]))
        status = str(body.get("status"))
        self._finish_reason = {"completed": "stop", "incomplete": "length"}.get(status, status)

    @property
    def turn(self) -> Turn | None:
        """The turn; None unless its end was seen."""
        if not self._finish_reason:
            return None
        return Turn(
            prompt_ids=self._prompt_ids,
            answer_ids=self._answer_ids,
            finish_reason="more than one answer" if self._has_several else self._finish_reason,
        )


def _token_ids(values: Mapping[str, Any], name: str) -> "array[int]":
    """In four bytes each; empty where there are none."""
    return array("I", values.get(name) or ())


def _bad_answer(why: str, content: bytes) -> BadAnswer:
    return BadAnswer(f"the generator's answer makes no sense: {why} in {content[:200]!r}")


@dataclass(kw_only=True, slots=True)
class Stretch:
    """Turns that each extend the one before, as one sequence."""

    num_shown: int
    """Tokens before the first answer."""
    token_ids: "array[int]" = field(default_factory=lambda: array("I"))
    """All that was shown and sampled, in order."""
    is_sampled: bytearray = field(default_factory=bytearray)
    """A one for each token that the policy sampled in this stretch, else a zero."""

    def is_begun_by(self, turn: Turn) -> bool:
        """Whether the turn's prompt begins with all of `token_ids`."""
        return turn.prompt_ids[: len(self.token_ids)] == self.token_ids

    def add(self, turn: Turn) -> None:
        """A turn whose prompt begins with all of `token_ids`."""
        shown = turn.prompt_ids[len(self.token_ids) :]
        self.token_ids += shown + turn.answer_ids
        self.is_sampled += b"\0" * len(shown) + b"\1" * len(turn.answer_ids)

    def segment(self, *, after: int, has_context: bool) -> ResponseSegment:
        """What follows the first `after` tokens; what was shown is context, not a target."""
        return ResponseSegment(
            context_ids=tuple(self.token_ids[:after]) if has_context else (),
            token_ids=tuple(self.token_ids[after:]),
            trained_token_mask=tuple(map(bool, self.is_sampled[after:])),
        )


class Transcript:
    """All turns of a session, each token kept once, until its conversation is asked for.

    A request that begins with all that was shown and sampled in a stretch goes on with it. Any other, whose
    history was rewritten or which goes back to an earlier point, begins a stretch of its own after exactly
    what the policy was shown: training a history as if it had been another would train tokens on what never
    preceded them.
    """

    def __init__(self) -> None:
        self.num_turns = 0
        self._stretches: list[Stretch] = []
        self._finish_reason = ""
        self._problem = NotTrainable("no_turns", "the session has no finished answer")

    def add(self, turn: Turn) -> None:
        """The next turn; nothing is kept of a session that makes no response."""
        self.num_turns += 1
        if self.num_turns == 1 or self._stretches:
            try:
                self._add(turn)
            except NotTrainable as error:
                self._problem = error
                self._stretches.clear()

    def conversation(self, *, has_segments: bool) -> "Conversation":
        """All turns; raises NotTrainable if they make no response, which without segments has one stretch."""
        if not self._stretches:
            raise self._problem
        if len(self._stretches) > 1 and not has_segments:
            raise NotTrainable("history_rewritten", "a run that an older release created has no segments")
        return Conversation(
            stretches=tuple(self._stretches), finish_reason=_FINISH_REASONS[self._finish_reason]
        )

    def clear(self) -> None:
        """Keeps the number of turns alone."""
        self._stretches.clear()

    def _add(self, turn: Turn) -> None:
        if not turn.prompt_ids or not turn.answer_ids:
            raise NotTrainable("no_token_ids", f"the engine gave no token ids for turn {self.num_turns}")
        if turn.finish_reason not in _FINISH_REASONS:
            raise NotTrainable("unknown_end", f"turn {self.num_turns} ended with {turn.finish_reason!r}")
        extended = [each for each in self._stretches if each.is_begun_by(turn)]
        if not extended:
            extended = [Stretch(num_shown=len(turn.prompt_ids))]
            self._stretches += extended
        max(extended, key=lambda each: len(each.token_ids)).add(turn)
        self._finish_reason = turn.finish_reason
        num_tokens = sum(len(each.token_ids) for each in self._stretches)
        if len(self._stretches) > MAX_SEGMENTS or num_tokens > MAX_RESPONSE_TOKENS:
            raise NotTrainable(
                "too_long", f"{len(self._stretches)} segments of {num_tokens} tokens in all are too many"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """All turns of a session."""

    stretches: tuple[Stretch, ...]
    """In the order of their first answers; more than one where history was rewritten, or forked."""
    finish_reason: FinishReason
    """Of the last turn."""

    def response(self, *, after: int, reward: float) -> Response:
        """What follows the group's prompt of `after` tokens, and all else: each answer is trained once."""
        first, *further = self.stretches
        begin = first.segment(after=after, has_context=False)
        if not further:
            return Response(
                token_ids=begin.token_ids,
                reward=reward,
                finish_reason=self.finish_reason,
                trained_token_mask=begin.trained_token_mask,
            )
        segments = (begin, *(each.segment(after=each.num_shown, has_context=True) for each in further))
        return Response(segments=segments, reward=reward, finish_reason=self.finish_reason)


def shared_prompt(conversations: Sequence[Conversation]) -> tuple[int, ...]:
    """The longest beginning that all were shown before their first answer."""
    first = [each.stretches[0] for each in conversations]
    return tuple(_common([each.token_ids[: each.num_shown] for each in first]))


def _common(sequences: Sequence[Sequence[int]]) -> Iterator[int]:
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            return
        yield tokens[0]
