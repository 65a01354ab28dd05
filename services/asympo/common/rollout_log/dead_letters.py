"""Records that failed validation."""

from asympo.common.rollout_log.access import RunAccess, text
from asympo.common.rollout_log.types import DeadLetter, Fence, LogEntry

MAX_DEAD_LETTERS = 1000
"""The newest ones kept, with their payloads."""


class DeadLetters:
    """Setting bad records aside with a reason."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def add(self, fence: Fence, entry: LogEntry, reason: str) -> None:
        """Copies the entry to the dead letters and frees its slot; the entry itself stays until commit."""
        described = (entry.sequence, entry.group_id, entry.producer, reason, entry.payload)
        self._run.call_fenced(fence, "dead_letter", MAX_DEAD_LETTERS, *described)

    def newest(self, count: int = 100) -> list[DeadLetter]:
        """The newest ``count``, newest first."""
        letters = []
        for entry_id, fields in self._run.broker.newest(self._run.key("dead"), max_count=count):
            letters.append(
                DeadLetter(
                    sequence=int(entry_id.partition("-")[0]),
                    group_id=text(fields["group_id"]),
                    producer=text(fields["producer"]),
                    reason=text(fields["reason"]),
                    payload=fields["payload"],
                    at_seconds=int(fields["at_ms"]) / 1000,
                )
            )
        return letters
