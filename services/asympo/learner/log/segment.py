"""From log entries to steps: decode, validate, tokenise text, free at once what will not be trained."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from asympo.common.codec import WireLimits, decode_group
from asympo.common.errors import InvalidRecord
from asympo.common.foreign.text import printable
from asympo.common.group_ids import is_issued
from asympo.common.records import Response, RolloutGroup, group_advantages
from asympo.common.rollout_log import LogEntry, RunConfig
from asympo.learner.log.texts import RecordTexts
from asympo.learner.model.batching import TrainedGroup, TrainedResponse
from asympo.learner.progress import Progress

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadGroup:
    """One valid group of a segment with token ids for everything."""

    record: RolloutGroup
    """As it came."""
    sequence: int
    """Its number in the log."""
    producer: str
    """Who appended it."""
    appended_at_seconds: float
    """Broker time."""
    prompt_ids: tuple[int, ...]
    """As given, or tokenised from text."""
    response_ids: tuple[tuple[int, ...], ...]
    """As sampled, or tokenised from text; of segments all of theirs, without contexts."""
    advantages: tuple[float, ...]
    """Zeros when the group has no signal."""

    @property
    def has_signal(self) -> bool:
        return any(self.advantages)

    def to_trained(self) -> TrainedGroup:
        """Without the responses that contribute nothing."""
        responses = zip(self.response_ids, self.advantages, self.record.responses, strict=True)
        return TrainedGroup(
            prompt_ids=self.prompt_ids,
            responses=tuple(
                _trained(response, token_ids, advantage)
                for token_ids, advantage, response in responses
                if advantage != 0.0
            ),
        )


def _trained(response: Response, token_ids: tuple[int, ...], advantage: float) -> TrainedResponse:
    if not response.segments:
        return TrainedResponse(
            token_ids=token_ids, advantage=advantage, trained_token_mask=response.trained_token_mask
        )
    first, *further = response.segments
    return TrainedResponse(
        token_ids=first.token_ids,
        advantage=advantage,
        trained_token_mask=first.trained_token_mask,
        segments=tuple(further),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LogSegment:
    """A contiguous part of the log that makes one step."""

    first_sequence: int
    """Its first entry."""
    last_sequence: int
    """Its last entry; the cursor after it."""
    groups: tuple[ReadGroup, ...]
    """Its valid groups in log order."""
    entries: tuple[LogEntry, ...]
    """All of its entries as they came, dead-lettered ones included."""
    reasons: Mapping[int, str]
    """Why entries were dead-lettered, by sequence."""
    freed_ids: frozenset[str] = frozenset()
    """Groups that gave their slots back when they were read."""
    num_reconciles: int = 0
    """Of the log when it was read; once there are more, it must be read again."""

    @property
    def group_ids(self) -> tuple[str, ...]:
        """Ids of all its entries, dead-lettered ones included."""
        return tuple(entry.group_id for entry in self.entries)

    @property
    def num_without_signal(self) -> int:
        return sum(not group.has_signal for group in self.groups)

    @property
    def num_responses(self) -> int:
        return sum(len(group.record.responses) for group in self.groups)


class GroupReader:
    """Turns one entry into a ReadGroup; raises InvalidRecord with the reason."""

    def __init__(
        self,
        *,
        texts: RecordTexts,
        config: RunConfig,
        vocab_size: int,
        max_tokens: int | None,
        max_row_tokens: int | None = None,
        alone_above: int | None = None,
        is_trained: Callable[[str], bool],
    ) -> None:
        """`max_tokens` and `alone_above`: what the model takes in a sequence, and computes beside others.

        `max_row_tokens`: what this learner takes of one response, whatever the model does.
        """
        self._texts = texts
        self._config = config
        self._limits = WireLimits(vocab_size=vocab_size, max_responses=config.group_size)
        self._max_tokens = max_tokens
        self._max_row_tokens = max_row_tokens
        self._alone_above = alone_above
        self._is_trained = is_trained

    def read(self, entry: LogEntry) -> ReadGroup:
        """Validates everything before it can reach a tensor."""
        if entry.problem:
            raise InvalidRecord(entry.problem)
        record = decode_group(entry.payload, limits=self._limits)
        if record.group_id != entry.group_id:
            raise InvalidRecord(
                f"record says that it is group {record.group_id}, but its lease was for {entry.group_id}"
            )
        num_prompts = self._config.num_prompts
        if not is_issued(record.group_id, producer=entry.producer, num_prompts=num_prompts):
            raise InvalidRecord(f"group {record.group_id} is for none of this run's prompts")
        if self._is_trained(record.group_id):
            raise InvalidRecord(f"group {record.group_id} was trained before")
        prompt_ids = record.prompt.token_ids or self._texts.prompt_ids(record.prompt)
        response_ids = tuple(
            response.all_token_ids or self._texts.response_ids(response, prompt_ids=prompt_ids)
            for response in record.responses
        )
        for response, token_ids in zip(record.responses, response_ids, strict=True):
            lengths = _lengths(response, token_ids, len(prompt_ids))
            self._check_lengths(max(lengths), sum(lengths), len(response.segments))
        return ReadGroup(
            record=record,
            sequence=entry.sequence,
            producer=entry.producer,
            appended_at_seconds=entry.appended_at_seconds,
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            advantages=group_advantages([response.reward for response in record.responses]),
        )

    def _check_lengths(self, longest: int, total: int, num_segments: int) -> None:
        if self._max_tokens is not None and longest > self._max_tokens:
            raise InvalidRecord(
                f"the group has a sequence of {longest} tokens, and the model takes {self._max_tokens}"
            )
        if self._max_row_tokens is not None and total > self._max_row_tokens:
            raise InvalidRecord(
                f"a response of the group needs a row of {total} tokens, prompt and segments included, and "
                f"this learner's max_row_tokens is {self._max_row_tokens}"
            )
        if num_segments > 1 and self._alone_above is not None and longest - 1 > self._alone_above:
            above = f"sequences of more than {self._alone_above} tokens" if self._alone_above else "sequences"
            raise InvalidRecord(
                f"a response has {num_segments} segments of up to {longest} tokens, and this model computes "
                f"{above} one at a time: the mean NLL of a response needs them together"
            )


def _lengths(response: Response, token_ids: tuple[int, ...], num_prompt: int) -> list[int]:
    """Tokens of each sequence of a response, with what it follows."""
    if not response.segments:
        return [num_prompt + len(token_ids)]
    return [(len(each.context_ids) or num_prompt) + len(each.token_ids) for each in response.segments]


class SegmentLog(Protocol):
    """What a segment reader does with the log."""

    num_reconciles: int
    """Grows when the log was reconciled: what was read and not consumed must be read again."""
    progress: Progress
    """Whatever consumes a segment moves its `sequence`, before the next poll."""

    def read(self, *, after_sequence: int, max_count: int, block_seconds: float) -> Sequence[LogEntry]: ...

    def free(self, group_ids: Sequence[str]) -> None: ...

    def dead_letter(self, entry: LogEntry, reason: str) -> None: ...


class SegmentReader:
    """Collects entries until they make a segment.

    A group without signal frees its slot at once, unless the segment could then end with fewer than
    `groups_per_step` slots held until the next policy: a shorter step would let more groups wait than
    max_staleness allows.
    """

    def __init__(
        self,
        *,
        log: SegmentLog,
        group_reader: GroupReader,
        groups_per_step: int,
        max_groups_per_step: int,
        on_invalid: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._log = log
        self._group_reader = group_reader
        self._groups_per_step = groups_per_step
        self._max_groups = max_groups_per_step
        self._on_invalid = on_invalid
        self._num_reconciles = log.num_reconciles
        self._waiting: list[LogEntry] = []
        self._groups: list[ReadGroup] = []
        self._entries: list[LogEntry] = []
        self._reasons: dict[int, str] = {}
        self._freed: set[str] = set()
        self._num_slots_held = 0

    @property
    def read_cursor(self) -> int:
        """Last entry read."""
        last = self._waiting or self._entries
        return last[-1].sequence if last else self._log.progress.sequence

    def poll(self, *, block_seconds: float) -> LogSegment | None:
        """The next segment, or None when the log holds no complete one after `block_seconds`."""
        if not self._waiting:
            self._waiting.extend(
                self._log.read(
                    after_sequence=self.read_cursor, max_count=self._max_groups, block_seconds=block_seconds
                )
            )
        while self._waiting and not self._is_rewound():
            self._take(self._waiting.pop(0))
            if self._is_rewound():
                break
            num_signal = sum(group.has_signal for group in self._groups)
            if num_signal >= self._groups_per_step or len(self._entries) >= self._max_groups:
                return self._give_out()
        if self._is_rewound():
            self._rewind()
        return None

    def flush(self) -> LogSegment | None:
        """What is left when no further entry will come; None when that is nothing or must be read again."""
        if self._is_rewound():
            self._rewind()
        return self._give_out() if self._entries and not self._waiting else None

    def _take(self, entry: LogEntry) -> None:
        is_repeated = any(entry.group_id == earlier.group_id for earlier in self._entries)
        self._entries.append(entry)
        try:
            if is_repeated:
                raise InvalidRecord(f"group {entry.group_id} is in this step already")
            group = self._group_reader.read(entry)
        except InvalidRecord as error:
            log.warning("Entry %d from %s is set aside: %s", entry.sequence, entry.producer, printable(error))
            self._on_invalid(str(error))
            self._reasons[entry.sequence] = str(error)
            self._log.dead_letter(entry, str(error))
            self._freed.add(entry.group_id)
            return
        self._groups.append(group)
        num_to_come = self._max_groups - len(self._entries)
        if group.has_signal or self._num_slots_held + num_to_come < self._groups_per_step:
            self._num_slots_held += 1
        else:
            self._log.free([entry.group_id])
            self._freed.add(entry.group_id)

    def _give_out(self) -> LogSegment:
        segment = LogSegment(
            first_sequence=self._entries[0].sequence,
            last_sequence=self._entries[-1].sequence,
            groups=tuple(self._groups),
            entries=tuple(self._entries),
            reasons=self._reasons,
            freed_ids=frozenset(self._freed),
            num_reconciles=self._num_reconciles,
        )
        self._entries, self._groups, self._reasons, self._num_slots_held = [], [], {}, 0
        self._freed = set()
        return segment

    def _is_rewound(self) -> bool:
        return self._log.num_reconciles != self._num_reconciles

    def _rewind(self) -> None:
        self._num_reconciles = self._log.num_reconciles
        self._waiting, self._entries, self._groups, self._num_slots_held = [], [], [], 0
        self._reasons, self._freed = {}, set()
