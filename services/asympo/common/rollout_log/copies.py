"""A run's keys as values that fit any broker, and back into an empty one: what a backup is made of."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from asympo.common.errors import BadSetting
from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.keys import DELETED, NOUNS

_LARGE = ("dead", "log")
"""Streams with payloads: read by and by, behind the rest."""
_TRANSIENT = ("presence", "presence_until", "swaps")
_APART = "payloads"
"""They are copied inside the entries that refer to them."""
_AT_ONCE = 1000
_ENTRIES_AT_ONCE = 2
"""Each may have its payload in it, and the broker has to hold the whole answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopiedPiece:
    """Some of one key's items."""

    noun: str
    """Of keys.NOUNS."""
    kind: str
    """Type of the key in the broker's words."""
    place: int
    """How many items of the key come before."""
    items: tuple[bytes, ...]
    """One value; field, value, ...; members; items; member, score, ...; or an entry: id, field, value, ..."""


class Copies:
    """Taking a run's keys along."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def read(self) -> Iterator[CopiedPiece]:
        """Every key but who is present: all of one instant, then streams with payloads up to that instant.

        A learner that commits meanwhile trims the log: its first entries may be missing, and are covered by a
        training state that is on storage by then. Raises BadSetting when there is no such run.
        """
        small = [noun for noun in NOUNS if noun not in (*_LARGE, *_TRANSIENT, _APART)]
        copied = self._run.broker.run_script("copy", [self._run.key(noun) for noun in small], [])
        last_sequence = None
        for noun, (kind, items) in zip(small, copied, strict=True):
            if noun == "run":
                fields = dict(zip(items[::2], items[1::2], strict=True))
                last_sequence = number(fields.get(b"last_sequence"))
            yield from _pieces(noun, text(kind), items)
        if not last_sequence and self._run.broker.command("EXISTS", self._run.key("config")) == 0:
            raise BadSetting(
                f"the broker at {self._run.broker.url} has no run {self._run.name!r}: check the name"
            )
        for noun in _LARGE:
            yield from self._entries(noun, last_sequence=last_sequence or 0)

    def put_back(self, pieces: Iterable[CopiedPiece]) -> None:
        """Writes a copied run to a broker that has no run of that name; nobody sees it before it is complete.

        Nobody owns it then, and its leases are taken back: their prompts are issued again. Raises BadSetting
        when the run is there.
        """
        if self._run.broker.command("EXISTS", self._run.key("config")):
            raise BadSetting(
                f"the broker at {self._run.broker.url} has a run {self._run.name!r}: stop its services "
                "and delete it, or restore to another broker"
            )
        # What an interrupted attempt left; and the copy may be of a run that was deleted since.
        keys = [self._run.key(noun) for noun in (DELETED, "learner", "run", *NOUNS)]
        self._run.broker.run_script("delete", keys, [0])
        config: CopiedPiece | None = None
        num_queued, taken_back = 0, list[bytes]()
        for piece in pieces:
            if piece.noun == "config":
                config = piece
                continue
            if piece.noun == "leases":
                taken_back += [lease.partition(b"|")[0] for lease in piece.items[1::2]]
            elif piece.noun == "reissue":
                num_queued = piece.place + len(piece.items)
                self._put(piece)
            elif piece.noun != "deadlines":
                self._put(_unowned(piece))
        if config is None:
            raise BadSetting(f"the copy of run {self._run.name!r} has no config: it is incomplete")
        for piece in _pieces("reissue", "list", taken_back):
            self._put(replace(piece, place=piece.place + num_queued))
        self._put(config)

    def _put(self, piece: CopiedPiece) -> None:
        keys = [self._run.key(piece.noun), self._run.key("config")]
        reply = self._run.broker.run_script("put_back", keys, [piece.kind, piece.place, *piece.items])
        if reply[0] != b"OK":
            raise BadSetting(
                f"run {self._run.name!r} was created while it was restored: delete it, and try again"
            )

    def _entries(self, noun: str, *, last_sequence: int) -> Iterator[CopiedPiece]:
        after, place = "0-0", 0
        while True:
            span = {"first_id": f"({after}", "last_id": str(last_sequence)}
            entries = self._run.broker.read_range(self._run.key(noun), max_count=_ENTRIES_AT_ONCE, **span)
            for entry_id, fields in entries:
                after = entry_id
                if not self._fetch_payload(fields):
                    continue
                flat = (part for name, value in fields.items() for part in (name.encode(), value))
                yield CopiedPiece(noun=noun, kind="stream", place=place, items=(entry_id.encode(), *flat))
                place += 1
            if not entries:
                return

    def _fetch_payload(self, fields: dict[str, bytes]) -> bool:
        """Puts a payload that lies beside the log into its entry; False where a commit has deleted both."""
        token = fields.pop("payload_at", None)
        if token is not None and "payload" not in fields:
            payload = self._run.broker.command("HGET", self._run.key(_APART), token)
            if payload is None:
                return False
            fields["payload"] = payload
        return True


def _pieces(noun: str, kind: str, items: Iterable[object]) -> Iterator[CopiedPiece]:
    """Items of one key in pieces that a script takes; an entry of a stream is a piece."""
    place, remaining = 0, iter(items)
    if kind == "stream":
        for entry_id, fields in zip(remaining, remaining, strict=True):
            entry = (_bytes(entry_id), *map(_bytes, fields))  # type: ignore[call-overload]
            yield CopiedPiece(noun=noun, kind=kind, place=place, items=entry)
            place += 1
        return
    while some := tuple(islice(remaining, _AT_ONCE)):
        yield CopiedPiece(noun=noun, kind=kind, place=place, items=tuple(map(_bytes, some)))
        place += len(some)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _unowned(piece: CopiedPiece) -> CopiedPiece:
    """The hash that names the run's owner without it, its number stays used; any other piece as it is."""
    if piece.noun not in ("run", "learner") or b"fence_token" not in piece.items[::2]:
        return piece
    fields = dict(zip(piece.items[::2], piece.items[1::2], strict=True))
    fields |= {b"fence_token": b"", b"fence_deadline_ms": b"0"}
    return replace(piece, items=tuple(part for field in fields.items() for part in field))
