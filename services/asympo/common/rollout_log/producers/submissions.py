"""Groups under ids of the producer's own: appended once, whatever is sent again."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from asympo.common.errors import InvalidRecord
from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.types import RefusalReason, Refused

REMEMBERED_IDS = 4096
"""Of each producer, the newest by number. One of these is recognised when it comes again; an older one is
refused, since nobody can say any more whether it came before."""
PRODUCER_NAME = r"^[a-z][a-z0-9-]{0,31}$"
"""A letter first: ids of leased prompts begin with a digit, and one must never be taken for the other."""
_LOCAL_ID = re.compile(r"(0|[1-9][0-9]{0,15})(?:-([A-Za-z0-9._:-]{1,64}))?", re.ASCII)
_MAX_NUMBER = 2**53


class SubmitOutcome(StrEnum):
    """What became of a submitted group."""

    APPENDED = "appended"
    DUPLICATE = "duplicate"
    """It had been appended before; nothing written again."""
    TOO_OLD = "too_old"
    """Its number is below all that are remembered of this producer; the group is not taken."""
    NO_CAPACITY = "no_capacity"
    """As many groups as allowed are leased or open; send it again later."""
    OVER_SHARE = "over_share"
    """The producer holds its share of the slots, and others need theirs; send it again later."""
    TOO_LARGE = "too_large"
    """It has more bytes than a record of this run may have."""
    RUN_ENDED = "run_ended"
    """The run is finished or failed."""
    PAUSED = "paused"
    """The run is draining."""
    NOT_STARTED = "not_started"
    """No learner has started the run."""

    @property
    def is_final(self) -> bool:
        """Whether sending the group again would change nothing."""
        return self in _FINAL


_FINAL = frozenset(
    {
        SubmitOutcome.APPENDED,
        SubmitOutcome.DUPLICATE,
        SubmitOutcome.TOO_OLD,
        SubmitOutcome.TOO_LARGE,
        SubmitOutcome.RUN_ENDED,
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One encoded group of a producer."""

    group_id: str
    """Namespaced, as it stands in the payload: see `foreign_id`."""
    payload: bytes
    """Encoded RolloutGroup."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """Answer to one submission."""

    outcome: SubmitOutcome
    """What became of the group."""
    sequence: int | None
    """Number of its entry; None unless appended now."""


def foreign_id(producer: str, local_id: str) -> str:
    """What a producer's `local_id` is in the log; raises InvalidRecord for one that it may not use."""
    if not re.fullmatch(PRODUCER_NAME, producer):
        raise InvalidRecord(
            f"producer {producer!r}: give 1 to 32 lower-case letters, digits or -, beginning with a letter"
        )
    match = _LOCAL_ID.fullmatch(local_id)
    if match is None or int(match[1]) > _MAX_NUMBER:
        raise InvalidRecord(
            f"group_id is {local_id[:80]!r}: give a number that grows from group to group (a row, a time in "
            "milliseconds), and after it, if you like, a dash and up to 64 of A-Z a-z 0-9 . _ : -"
        )
    return f"{producer}/{local_id}"


class Submissions:
    """The producer's side of the log."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def submit(
        self,
        producer: str,
        groups: Sequence[Submission],
        *,
        max_slots: int | None = None,
        run_id: str = "",
    ) -> tuple[list[Submitted], Refused]:
        """Appends groups in order, each once; returns also what to wait on if one lacked a slot.

        `max_slots`: of the run's capacity, as long as others hold slots too. `run_id`: of the run that the
        caller has joined, if it knows it: another one of the same name answers as one that has not started.
        Raises BrokerFull when the broker is out of memory: send all of them again.
        """
        share = 2**53 if max_slots is None else max_slots
        arguments: list[str | int | bytes] = [producer, share, REMEMBERED_IDS]
        for group in groups:
            arguments += [_sortable(group.group_id), group.group_id, group.payload]
        wake_id, retry_ms, *flat = self._run.call("submit", *arguments, run_id)
        answers = [
            Submitted(outcome=SubmitOutcome(text(outcome).lower()), sequence=number(sequence) or None)
            for outcome, sequence in zip(flat[::2], flat[1::2], strict=True)
        ]
        refused = Refused(
            reason=RefusalReason.NO_CAPACITY,
            retry_after_seconds=number(retry_ms) / 1000,
            wake_id=text(wake_id),
            policy_id="0-0",
        )
        return answers, refused

    def counts(self) -> dict[str, dict[str, int]]:
        """By producer: how many of its groups were appended, duplicates or too old."""
        found: dict[str, dict[str, int]] = {}
        for name, count in self._run.broker.hash_items(self._run.key("producers")):
            producer, _, outcome = text(name).partition("/")
            found.setdefault(producer, {})[outcome] = number(count)
        return found

    def purge(self, producer: str, *, batch: int = 500) -> tuple[int, int]:
        """Takes out of the log what a producer appended and nobody has trained.

        How many entries, and how many stay because the learner has read them and is about to train them.
        """
        after, num_taken, num_left = 0, 0, 0
        while True:
            last, taken, left = self._run.call("purge_producer", producer, after, batch, f"{producer}/")
            num_taken, num_left, after = num_taken + number(taken), num_left + number(left), number(last)
            if not after:
                return num_taken, num_left


def _sortable(group_id: str) -> str:
    """In the order of numbers when it is in the order of characters."""
    producer, _, local_id = group_id.partition("/")
    digits, dash, rest = local_id.partition("-")
    return f"{producer}/{digits:0>16}{dash}{rest}"
