"""The one kind of record that producers hand to the learner: a prompt with all its responses and rewards.

And what its rewards say, in double precision and without torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

MAX_RESPONSES = 1024
"""Of one group."""
MAX_PAYLOAD_BYTES = 16 * 2**20
"""Of a whole serialised record; a run's own limit follows from its sampling and is lower."""
MAX_FUNCTION_VALUES = 64
"""Of one response; of its notes as well."""
MAX_RESPONSE_TOKENS = 131_072
"""Of one response; in segments all of theirs, contexts included."""
MAX_SEGMENTS = 128
"""Of one response."""
MAX_ABS_REWARD = 1e6
"""Larger rewards are a mistake of the scorer, and would lose their differences in float32."""
MAX_ABS_FUNCTION_VALUE = 1e30
"""Means of larger ones could overflow, and trackers keep float32."""


class FinishReason(StrEnum):
    """Why sampling of a response ended."""

    STOP = "stop"
    """The policy ended it: end-of-sequence token or stop string."""
    LENGTH = "length"
    """Cut off at the token limit; it never gains an end-of-sequence token."""
    ABORT = "abort"
    """Given up part-way; never put into the log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What the policy was asked, after the chat template. At least one field is filled."""

    token_ids: tuple[int, ...] = ()
    """Ids exactly as the policy saw them; used as they are when present."""
    text: str = ""
    """Rendered text; tokenised by the learner when there are no token ids, else only for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseSegment:
    """One sequence of a response whose history was rewritten on the way."""

    context_ids: tuple[int, ...] = ()
    """All that was shown before `token_ids`; empty in the first segment, which follows the group's prompt."""
    token_ids: tuple[int, ...]
    """Ids exactly as sampled, and what was shown in between."""
    trained_token_mask: tuple[bool, ...] | None = None
    """One flag for each of `token_ids`, true where the token is trained; None trains them all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """One sampled answer and what it earned. One of `token_ids`, `text` and `segments` is filled."""

    token_ids: tuple[int, ...] = ()
    """Ids exactly as sampled, the end-of-sequence id included if and only if it was sampled."""
    text: str = ""
    """Decoded text; tokenised by the learner when there are no token ids, else only for people."""
    reward: float
    """Finite, at most MAX_ABS_REWARD in size."""
    finish_reason: FinishReason
    """Why sampling ended; `abort` is refused in the log."""
    trained_token_mask: tuple[bool, ...] | None = None
    """One flag for each token id, true where the token is trained; None trains them all."""
    stop_string: str = ""
    """What ended a text without token ids, when that was no end-of-sequence token."""
    function_values: Mapping[str, float] = field(default_factory=dict)
    """Value of each reward function that applies, and as `name/number` of each number that it gave beside it.

    Finite, at most MAX_ABS_FUNCTION_VALUE in size.
    """
    function_notes: Mapping[str, str] = field(default_factory=dict)
    """What reward functions noted of the response in words, as `name/note`."""
    segments: tuple[ResponseSegment, ...] = ()
    """All its sequences, where it is more than one; then ids, text and mask are theirs alone."""

    @property
    def all_token_ids(self) -> tuple[int, ...]:
        """Its ids, or those of its segments one after the other without their contexts: for people."""
        if not self.segments:
            return self.token_ids
        return tuple(token for segment in self.segments for token in segment.token_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnscoredResponse:
    """A response without a reward; for people, never trained."""

    text: str
    """Decoded text."""
    reason: str
    """One sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup:
    """One entry of the rollout log: atomic, so that advantages sum to zero within it."""

    group_id: str
    """Unique in a run: `{epoch}-{index}` for leased prompts, namespaced by producer for foreign ones."""
    prompt: Prompt
    """What was asked."""
    responses: tuple[Response, ...]
    """At least one; a single response carries no signal."""
    unscored: tuple[UnscoredResponse, ...] = ()
    """Those that could not be scored."""
    columns_json: str = ""
    """The row's columns as one JSON object; long values are cut off."""


def group_advantages(rewards: Sequence[float]) -> tuple[float, ...]:
    """A_i = r_i - mean(r) of one whole group, no division by the standard deviation.

    Equal rewards give exact zeros, which subtraction of a rounded mean would not.
    """
    if not has_signal(rewards):
        return (0.0,) * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    return tuple(reward - mean for reward in rewards)


def has_signal(rewards: Sequence[float]) -> bool:
    """True when a group can be trained on: at least two responses, whose rewards are not all equal."""
    return len(rewards) >= 2 and min(rewards) != max(rewards)
