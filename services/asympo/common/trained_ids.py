"""Which groups have been consumed, so that none is ever trained twice.

Ids of our own prompts ("<epoch>-<index>") are kept exactly, as one bitmap per epoch; ids of foreign producers
as a window of the newest ones. "Trained" covers every group a segment consumed: with signal, without, and
dead-lettered. A prompt that rests in an epoch counts as consumed in it, so that the epoch can be complete.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from asympo.common.group_ids import parse_own_id

_MAX_BITMAP_BYTES = 32 * 2**20
"""Of unfinished epochs; ids of further ones are kept as foreign ids are."""
_MAGIC = b"asympo-ids-1\n"


class TrainedIds:
    """A set of group ids; memory is num_prompts / 8 bytes an unfinished epoch plus the foreign window."""

    def __init__(self, *, num_prompts: int, max_foreign: int = 100_000) -> None:
        self.num_prompts = num_prompts
        self.max_foreign = max_foreign
        self._complete_below = 0
        self._bitmaps: dict[int, bytearray] = {}
        self._resting: dict[int, bytes] = {}
        self._counts: dict[int, int] = {}
        self._foreign: dict[str, None] = {}

    def add(self, group_id: str) -> bool:
        """Adds an id; returns whether it was new."""
        if group_id in self:
            return False
        own = self._parse(group_id)
        if own is None or not self._has_room(own[0]):
            self._foreign[group_id] = None
            while len(self._foreign) > self.max_foreign:
                del self._foreign[next(iter(self._foreign))]
            return True
        epoch, index = own
        bitmap = self._bitmaps.setdefault(epoch, bytearray((self.num_prompts + 7) // 8))
        bitmap[index >> 3] |= 1 << (index & 7)
        self._counts[epoch] = self._counts.get(epoch, 0) + 1
        self._fold_complete()
        return True

    def rest(self, epoch: int, bits: bytes) -> None:
        """Prompts that an epoch passes over: bit `index % 8` of byte `index // 8`. The first call holds."""
        if len(bits) != (self.num_prompts + 7) // 8:
            raise ValueError(f"{len(bits)} bytes are not one bit for each of {self.num_prompts} prompts")
        if epoch < self._complete_below or epoch in self._resting or not self._has_room(epoch):
            return
        bitmap = self._bitmaps.setdefault(epoch, bytearray(len(bits)))
        self._resting[epoch] = bits
        self._counts[epoch] = _count(bitmap, bits)
        self._fold_complete()

    def resting(self) -> dict[int, bytes]:
        """What `rest` was told of epochs that are not among `complete_epochs`."""
        return dict(self._resting)

    def is_resting(self, epoch: int, index: int) -> bool:
        """Whether a prompt is in the set only because it rests."""
        bits = self._resting.get(epoch)
        return bits is not None and _has(bits, index) and not _has(self._bitmaps[epoch], index)

    def __contains__(self, group_id: str) -> bool:
        own = self._parse(group_id)
        return group_id in self._foreign or (own is not None and self.contains(*own))

    def contains(self, epoch: int, index: int) -> bool:
        """Whether prompt `index` of `epoch` is in the set."""
        if epoch < self._complete_below:
            return True
        bitmap = self._bitmaps.get(epoch)
        return bitmap is not None and (_has(bitmap, index) or self.is_resting(epoch, index))

    def __len__(self) -> int:
        own = self._complete_below * self.num_prompts + sum(self._counts.values())
        return own + len(self._foreign)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainedIds) and self.to_bytes() == other.to_bytes()

    __hash__ = None  # type: ignore[assignment]

    def num_in_epoch(self, epoch: int) -> int:
        """Ids of one epoch in the set."""
        return self.num_prompts if epoch < self._complete_below else self._counts.get(epoch, 0)

    @property
    def complete_epochs(self) -> int:
        """Every epoch below this one is complete."""
        return self._complete_below

    def partial_epochs(self) -> list[int]:
        """Epochs with some ids that are not among `complete_epochs`, in order."""
        return sorted(self._bitmaps)

    def foreign(self) -> Iterator[str]:
        """Foreign ids of the window, oldest first."""
        return iter(self._foreign)

    def copy(self) -> "TrainedIds":
        """An independent copy."""
        return TrainedIds.from_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Deterministic serialisation with a digest."""
        epochs = self.partial_epochs()
        header: dict[str, Any] = {
            "num_prompts": self.num_prompts,
            "max_foreign": self.max_foreign,
            "complete_below": self._complete_below,
            "epochs": [[epoch, self._counts[epoch]] for epoch in epochs],
            "foreign": list(self._foreign),
        }
        resting = sorted(self._resting)
        if resting:
            header["resting"] = resting
        head = json.dumps(header, separators=(",", ":")).encode()
        bitmaps = [self._bitmaps[epoch] for epoch in epochs] + [self._resting[epoch] for epoch in resting]
        body = len(head).to_bytes(8, "big") + head + b"".join(bitmaps)
        return _MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrainedIds":
        """Raises ValueError when `data` is not what `to_bytes` writes."""
        digest, body = data[len(_MAGIC) : len(_MAGIC) + 32], data[len(_MAGIC) + 32 :]
        if not data.startswith(_MAGIC) or hashlib.sha256(body).digest() != digest:
            raise ValueError("these bytes are not an intact set of trained ids")
        end = 8 + int.from_bytes(body[:8], "big")
        # A digest protects from damage; whoever writes other bytes can write theirs too.
        try:
            return cls._from_header(json.loads(body[8:end]), body[end:])
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"these bytes are not a set of trained ids: {error!r}") from error

    @classmethod
    def _from_header(cls, header: dict[str, Any], bitmaps: bytes) -> "TrainedIds":
        ids = cls(num_prompts=header["num_prompts"], max_foreign=header["max_foreign"])
        ids._complete_below = header["complete_below"]
        ids._foreign = dict.fromkeys(header["foreign"])
        ids._counts = dict(header["epochs"])
        counts = (ids.num_prompts, ids.max_foreign, ids._complete_below, *ids._counts, *ids._counts.values())
        if any(type(each) is not int or each < 0 for each in counts):
            raise TypeError("its header holds something else than counts")
        if not all(isinstance(each, str) for each in ids._foreign):
            raise TypeError("its header holds something else than ids")
        size, resting = (ids.num_prompts + 7) // 8, header.get("resting", [])
        if len(bitmaps) != size * (len(ids._counts) + len(resting)):
            raise TypeError("its bitmaps have another size")
        if not set(resting) <= ids._counts.keys() or len(set(resting)) < len(resting):
            raise TypeError("its prompts rest in epochs of which it has no ids")
        parts = [bitmaps[start : start + size] for start in range(0, len(bitmaps), size)] if size else []
        ids._bitmaps = dict(zip(ids._counts, map(bytearray, parts), strict=False))
        ids._resting = dict(zip(resting, parts[len(ids._counts) :], strict=False))
        for epoch, count in ids._counts.items():
            if _count(ids._bitmaps[epoch], ids._resting.get(epoch, b"")) != count:
                raise TypeError(f"epoch {epoch} has not {count} ids")
        return ids

    def _parse(self, group_id: str) -> tuple[int, int] | None:
        """(epoch, index) of one of our own ids, None for a foreign one."""
        own = parse_own_id(group_id)
        return None if own is None or own[1] >= self.num_prompts else own

    def _has_room(self, epoch: int) -> bool:
        """Whether an epoch has its bitmap or may get one: made-up epochs must not take all memory."""
        if epoch in self._bitmaps:
            return True
        return len(self._bitmaps) * ((self.num_prompts + 7) // 8) < _MAX_BITMAP_BYTES

    def _fold_complete(self) -> None:
        """Replaces complete leading epochs by a number, so that endless runs stay small."""
        while self._counts.get(self._complete_below) == self.num_prompts:
            del self._counts[self._complete_below], self._bitmaps[self._complete_below]
            self._resting.pop(self._complete_below, None)
            self._complete_below += 1


def _has(bits: bytes | bytearray, index: int) -> bool:
    return bool(bits[index >> 3] >> (index & 7) & 1)


def _count(*bitmaps: bytes | bytearray) -> int:
    """Bits that are set in any of them."""
    either = 0
    for bits in bitmaps:
        either |= int.from_bytes(bits, "little")
    return either.bit_count()
