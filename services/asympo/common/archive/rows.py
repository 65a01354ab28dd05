"""What the archive holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import ConfigDict

from asympo.common.records import RolloutGroup
from asympo.common.rollout_log import LogEntry
from asympo.common.versions import Format

FORMAT = Format(name="schema_version", newest=1, oldest=1)
"""Of a part: what it says of itself, and its columns."""

_CHECKED = ConfigDict(extra="ignore")
_KEPT = ("sequence", "group_id", "producer", "entry_id", "appended_at_seconds", "payload")
"""Of a log's entry."""


class EntryOutcome(StrEnum):
    """What the learner did with an entry."""

    TRAINED = "trained"
    """It had signal and entered a step's loss."""
    WITHOUT_SIGNAL = "without_signal"
    """All its rewards were equal: counted, nothing to learn from."""
    DEAD_LETTER = "dead_letter"
    """It was no valid record; set aside with a reason."""
    BACKLOG = "backlog"
    """In exports only: it is in the log and not yet durably consumed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedEntry:
    """One entry of the log as it was consumed."""

    sequence: int
    """Its number in the log."""
    segment_end: int
    """Last number of the segment it was consumed in: what made one step, or was passed over as one.
    0 in the backlog."""
    step: int | None
    """Optimizer step of that segment; None when the segment was passed over."""
    outcome: EntryOutcome
    """What was done with it."""
    reason: str
    """Why it was set aside; empty otherwise."""
    group_id: str
    """As leased."""
    producer: str
    """Who appended it."""
    entry_id: str
    """Redis stream id."""
    appended_at_seconds: float
    """Broker time."""
    payload: bytes
    """The record, byte for byte."""

    @classmethod
    def of(
        cls,
        entry: LogEntry,
        *,
        outcome: EntryOutcome,
        reason: str,
        segment_end: int = 0,
        step: int | None = None,
    ) -> "ArchivedEntry":
        """An entry of the log, and what became of it."""
        kept = {name: getattr(entry, name) for name in _KEPT}
        return cls(outcome=outcome, reason=reason, segment_end=segment_end, step=step, **kept)

    def to_log_entry(self) -> LogEntry:
        """As it was in the log."""
        return LogEntry(**{name: getattr(self, name) for name in _KEPT})


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadableResponse:
    """A response as it was trained, for readers of the file."""

    text: str
    """As it came; may be empty where token ids came."""
    token_ids: tuple[int, ...]
    """As sampled, or as the learner tokenised the text; empty for one of several segments."""
    reward: float
    advantage: float
    """Relative to the group."""
    finish_reason: str
    trained_token_mask: tuple[bool, ...] | None
    """None trains every token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadableGroup:
    """A valid group as it was trained."""

    prompt_text: str
    """As it came; may be empty where token ids came."""
    prompt_token_ids: tuple[int, ...]
    """As given, or as the learner tokenised the text."""
    responses: tuple[ReadableResponse, ...]

    @classmethod
    def of(
        cls,
        record: RolloutGroup,
        *,
        prompt_ids: tuple[int, ...],
        response_ids: Sequence[tuple[int, ...]],
        advantages: Sequence[float],
    ) -> "ReadableGroup":
        """A record with the token ids and advantages that it was, or would be, trained with."""
        return cls(
            prompt_text=record.prompt.text,
            prompt_token_ids=prompt_ids,
            responses=tuple(
                ReadableResponse(
                    text=response.text,
                    token_ids=() if response.segments else token_ids,
                    reward=response.reward,
                    advantage=advantage,
                    finish_reason=response.finish_reason.value,
                    trained_token_mask=response.trained_token_mask,
                )
                for response, token_ids, advantage in zip(
                    record.responses, response_ids, advantages, strict=True
                )
            ),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PartRef:
    """A part by content: what a training state, or the next part, says of it."""

    __pydantic_config__ = _CHECKED
    name: str
    """File name."""
    sha256: str
    """Of the whole file."""
    first: int
    """First log number it covers: one past the cursor before it."""
    last: int
    """Last one; the cursor after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartInfo:
    """What a part says of itself, in its Parquet metadata."""

    __pydantic_config__ = _CHECKED
    schema_version: int = FORMAT.newest
    """Layout of this and of the columns."""
    run: str
    """Run it belongs to."""
    fence: int
    """Fence of the learner that wrote it."""
    first: int
    """As in PartRef."""
    last: int
    """As in PartRef."""
    step_before: int
    """Optimizer steps made before its first entry."""
    step: int
    """Optimizer steps made after its last entry."""
    lost: tuple[tuple[int, int], ...]
    """Ranges of numbers among first..last that the broker had lost before the learner read them."""
    parent: PartRef | None
    """The part before; None for the first one."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """What the learner trained with: `settings`, `config` (of the run), `decisions`, `build`. JSON values."""
    row_limits: tuple[tuple[int, int, int], ...] = ()
    """Tokens of a row and logits at once from a step on, ascending by step: memory may have lowered them.
    Empty where the learner did not say; then they are those of `settings`."""
