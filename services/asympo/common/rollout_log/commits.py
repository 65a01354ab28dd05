"""Freeing slots and making the cursor durable."""

from collections.abc import Iterable, Sequence
from itertools import islice

from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.types import CommitRecord, Fence

_MAX_IDS_AT_ONCE = 2000


class Commits:
    """The learner's side of finishing groups."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def free(self, fence: Fence, group_ids: Iterable[str], *, trained_sequence: int = 0) -> int:
        """Frees the slots of groups; unknown and freed ids are ignored. Returns how many were open."""
        num_freed = 0
        remaining = iter(group_ids)
        while chunk := list(islice(remaining, _MAX_IDS_AT_ONCE)):
            num_freed += number(self._run.call_fenced(fence, "free", trained_sequence, *chunk)[1])
        return num_freed

    def commit(
        self,
        fence: Fence,
        *,
        sequence: int,
        state_name: str,
        step: int,
        group_ids: Sequence[str],
        num_consumed: int | None = None,
    ) -> CommitRecord:
        """Records that everything up to `sequence` is in training state `state_name`; trims the log.

        `group_ids`: groups consumed since the last commit whose slots are freed; `num_consumed` counts
        those as well that stay open until a policy frees them. Entries after `sequence` are never touched.
        A run whose prompts are used up and all committed becomes finished.
        Whoever wants to keep the entries has put them into an archive before.
        """
        head, tail = group_ids[:_MAX_IDS_AT_ONCE], group_ids[_MAX_IDS_AT_ONCE:]
        # Freeing is idempotent and needs no order, so the rest may go ahead of the one atomic script.
        self.free(fence, tail)
        num_consumed = len(group_ids) if num_consumed is None else num_consumed
        arguments = (sequence, state_name, step, num_consumed, *head)
        self._run.call_fenced(fence, "commit", *arguments)
        return CommitRecord(sequence=sequence, state_name=state_name, step=step, fence=fence.number)

    def last(self) -> CommitRecord | None:
        """The newest commit record; None before the first."""
        values = self._run.broker.command(
            "HMGET", self._run.key("commit"), "sequence", "state_name", "step", "fence"
        )
        return commit_of(values)


def commit_of(values: Sequence[bytes | None]) -> CommitRecord | None:
    """A commit record from its four stored fields."""
    if values[0] is None:
        return None
    sequence, state_name, step, fence = values
    return CommitRecord(
        sequence=number(sequence), state_name=text(state_name), step=number(step), fence=number(fence)
    )
