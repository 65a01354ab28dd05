"""Counts what was lost and what was doubled, from records alone.

Shares no code with the rollout log or the learner: whatever is wrong there must show here.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from asympo.chaos.evidence import Acknowledged, Archived, Rollback, TrainedSegment

NOT_TRAINED = "dead_letter"
"""Outcome of an entry that was consumed and set aside."""
_JOURNAL_SECONDS = 2.0
"""A line may be written this long after the acknowledgement it speaks of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What the records say. Lists of sentences name the group, its numbers and its steps."""

    prompts_answered: int
    """Prompts (epoch and index) with exactly one effective group."""
    groups_appended: int
    """Appends that a generator saw acknowledged, repeated acknowledgements of one append counted once."""
    groups_trained: int
    """Different groups that the final weights were made of."""
    trained_twice: tuple[str, ...]
    lost: tuple[str, ...]
    unanswered: tuple[str, ...]
    contradictions: tuple[str, ...]
    """Where two records do not agree."""
    taken_back: int
    """Acknowledged appends that the broker's own rollbacks took, whose prompts were answered again."""

    @property
    def is_clean(self) -> bool:
        return not (self.trained_twice or self.lost or self.unanswered or self.contradictions)


def audit(
    *,
    acknowledged: Mapping[str, Sequence[Acknowledged]],
    trained: Sequence[TrainedSegment],
    archived: Sequence[Archived],
    rollbacks: Sequence[Rollback],
    num_prompts: int,
    num_epochs: int,
) -> Audit:
    """Compares the generators' journals (by generator), the learner's ids by step, and the archive."""
    effective = [row for row in archived if row.outcome != NOT_TRAINED]
    by_group: dict[str, list[Archived]] = defaultdict(list)
    for row in effective:
        by_group[row.group_id].append(row)
    lost, taken_back, num_appended = _lost(acknowledged, archived, by_group, rollbacks)
    wanted = {f"{epoch}-{index}" for epoch in range(num_epochs) for index in range(num_prompts)}
    set_aside = {(row.sequence, row.group_id) for row in archived if row.outcome == NOT_TRAINED}
    segments_of: dict[str, list[TrainedSegment]] = defaultdict(list)
    for segment in trained:
        for group_id in segment.group_ids:
            segments_of[group_id].append(segment)
    return Audit(
        prompts_answered=sum(len(by_group.get(group_id, ())) == 1 for group_id in wanted),
        groups_appended=num_appended,
        groups_trained=len(by_group),
        trained_twice=tuple(_twice(by_group, segments_of, set_aside)),
        lost=tuple(lost),
        unanswered=tuple(
            f"prompt {group_id} was never answered"
            for group_id in sorted(wanted - by_group.keys(), key=_order)
        ),
        contradictions=tuple(_contradictions(archived, segments_of, wanted)),
        taken_back=taken_back,
    )


def _lost(
    acknowledged: Mapping[str, Sequence[Acknowledged]],
    archived: Sequence[Archived],
    by_group: Mapping[str, Sequence[Archived]],
    rollbacks: Sequence[Rollback],
) -> tuple[list[str], int, int]:
    kept = {(row.group_id, row.sequence, row.digest) for row in archived}
    lost, taken_back, seen = [], 0, set()
    for generator, lines in acknowledged.items():
        for number, line in enumerate(lines, start=1):
            identity = (line.group_id, line.sequence, line.digest)
            if identity in seen:
                continue
            seen.add(identity)
            if identity in kept:
                continue
            was_answered_again = line.group_id in by_group
            if was_answered_again and _was_taken_back(line, rollbacks):
                taken_back += 1
                continue
            lost.append(
                f"group {line.group_id}, acknowledged to {line.producer} as entry {line.sequence} "
                f"(line {number} of {generator}.jsonl), is in no archive"
                + (" although its prompt was answered by another" if was_answered_again else "")
            )
    return lost, taken_back, len(seen)


def _was_taken_back(line: Acknowledged, rollbacks: Sequence[Rollback]) -> bool:
    """Whether a rollback explains it: the number is above what the older log held, and the line was written
    before the learner had put the broker right again."""
    return any(
        line.sequence > rollback.held_sequence
        and line.at_seconds <= rollback.settled_at_seconds + _JOURNAL_SECONDS
        for rollback in rollbacks
    )


def _twice(
    by_group: Mapping[str, Sequence[Archived]],
    segments_of: Mapping[str, Sequence[TrainedSegment]],
    set_aside: set[tuple[int, str]],
) -> list[str]:
    found = [
        f"group {group_id} was trained {len(rows)} times: entries {_list(row.sequence for row in rows)}, "
        f"steps {_list(row.step for row in rows)} of the archive"
        for group_id, rows in by_group.items()
        if len(rows) > 1
    ]
    for group_id, segments in segments_of.items():
        # A line names all entries of its segment, those that were set aside too.
        num_aside = sum(
            any(
                (sequence, group_id) in set_aside
                for sequence in range(segment.first_sequence, segment.last_sequence + 1)
            )
            for segment in segments
        )
        if len(segments) - num_aside > 1:
            found.append(
                f"group {group_id} was trained in {len(segments)} segments of trained.jsonl: steps "
                f"{_list(segment.step for segment in segments)}"
            )
    return found


def _contradictions(
    archived: Sequence[Archived], segments_of: Mapping[str, Sequence[TrainedSegment]], wanted: set[str]
) -> list[str]:
    found = [
        f"entry {sequence} is in the archive {times} times"
        for sequence, times in Counter(row.sequence for row in archived).items()
        if times > 1
    ]
    in_archive = {row.group_id for row in archived}
    found += [
        f"group {group_id} is in step {_list(segment.step for segment in segments)} of trained.jsonl and "
        "in no archive"
        for group_id, segments in segments_of.items()
        if group_id not in in_archive
    ]
    for row in archived:
        segments = segments_of.get(row.group_id, ())
        if not any(each.first_sequence <= row.sequence <= each.last_sequence for each in segments):
            found.append(
                f"group {row.group_id} (entry {row.sequence}, step {row.step}, {row.outcome}) is in the "
                "archive and in no line of trained.jsonl that covers its entry"
            )
    found += [f"group {group_id} belongs to no prompt of the run" for group_id in in_archive - wanted]
    return found


def _order(group_id: str) -> tuple[int, int]:
    epoch, _, index = group_id.partition("-")
    return int(epoch), int(index)


def _list(numbers: Iterable[object]) -> str:
    return ", ".join(str(number) for number in numbers)
