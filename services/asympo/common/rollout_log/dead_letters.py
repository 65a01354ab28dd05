"""Records that failed validation."""

from asympo.common.foreign.numbers import parse_whole
from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.types import DeadLetter, Fence, LogEntry

MAX_DEAD_LETTERS = 1000
"""The newest ones kept, with their payloads."""
MAX_DEAD_LETTER_BYTES = 16 * 2**20
"""Of all that are kept: what is set aside must leave the broker's memory to what is trained."""
_MAX_REASON_CHARS = 1000


class DeadLetters:
    """Setting bad records aside with a reason."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def add(self, fence: Fence, entry: LogEntry, reason: str) -> None:
        """Copies the entry to the dead letters and frees its slot; the entry itself stays until commit."""
        limits = (MAX_DEAD_LETTERS, MAX_DEAD_LETTER_BYTES)
        told = reason[:_MAX_REASON_CHARS].encode(errors="replace")
        described = (entry.sequence, entry.group_id, entry.producer, told, entry.payload)
        self._run.call_fenced(fence, "dead_letter", *limits, *described)

    def newest(self, count: int = 100) -> list[DeadLetter]:
        """The newest `count`, newest first."""
        letters = []
        for letter_id, fields in self._run.broker.newest(self._run.key("dead"), max_count=count):
            letters.append(
                DeadLetter(
                    letter_id=letter_id,
                    sequence=parse_whole(letter_id.partition("-")[0]) or 0,
                    group_id=text(fields.get("group_id")),
                    producer=text(fields.get("producer")),
                    reason=text(fields.get("reason")),
                    payload=fields.get("payload", b""),
                    at_seconds=number(fields.get("at_ms")) / 1000,
                )
            )
        return letters

    def retry(self, letter: DeadLetter, payload: bytes, *, group_id: str) -> int | None:
        """Appends it again, as a group of its own; its new sequence, None when the letter is gone."""
        reply = self._run.call("retry", letter.letter_id, group_id, payload, letter.producer)
        return number(reply[1]) if reply[0] == b"OK" else None

    def purge(self) -> int:
        """Deletes all of them; returns how many there were."""
        return number(self._run.call("purge")[0])
