"""Records that failed validation."""

from asympo.common.rollout_log.access import RunAccess, text
from asympo.common.rollout_log.records import DeadLetter, Fence, LogEntry

MAX_DEAD_LETTERS = 1000
"""The newest ones kept, with their payloads."""


class DeadLetters(RunAccess):
    """Setting bad records aside with a reason."""

    def dead_letter(self, fence: Fence, entry: LogEntry, reason: str) -> None:
        """Copies the entry to the dead letters and frees its slot; the entry itself stays until commit."""
        at_ms = int(entry.appended_at_seconds * 1000)
        described = (entry.sequence, entry.group_id, entry.producer, reason, entry.payload, at_ms)
        self._call_fenced(fence, "dead_letter", "run dead open wake", MAX_DEAD_LETTERS, *described)

    def dead_letters(self, count: int = 100) -> list[DeadLetter]:
        """The newest ``count``, newest first."""
        reply = self.broker.command("XREVRANGE", self._key("dead"), "+", "-", "COUNT", count)
        letters = []
        for entry_id, flat in reply:
            fields = {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
            letters.append(
                DeadLetter(
                    sequence=int(text(entry_id).partition("-")[0]),
                    group_id=text(fields["group_id"]),
                    producer=text(fields["producer"]),
                    reason=text(fields["reason"]),
                    payload=fields["payload"],
                    at_seconds=int(fields["at_ms"]) / 1000,
                )
            )
        return letters
