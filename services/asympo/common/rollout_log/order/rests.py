"""Prompts that rest: an epoch passes over them."""

import re
from collections.abc import Sequence

from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.types import Fence

_PIECE_BYTES = 1024
"""Of one field, so that a lease reads little; as acquire.lua knows it."""
_FIELD = re.compile(r"([0-9]{1,15})/([0-9]{1,6})", re.ASCII)


class Rests:
    """The learner's side of an order by success. One bit a prompt: bit `index % 8` of byte `index // 8`."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def propose(self, fence: Fence, *, epoch: int, bits: bytes, keep_from: int) -> int:
        """Which prompts rest in `epoch`, unless it has begun; returns the newest epoch that has.

        Forgets epochs below `keep_from`.
        """
        return self._call(fence, epoch=epoch, bits=bits, keep_from=keep_from, has_held=False)

    def put_back(self, fence: Fence, *, epoch: int, bits: bytes) -> None:
        """What held in an epoch and the broker has lost."""
        self._call(fence, epoch=epoch, bits=bits, keep_from=0, has_held=True)

    def read(self, *, num_prompts: int) -> dict[int, bytes]:
        """By epoch, proposals included."""
        return rests_of(self._run.broker.command("HGETALL", self._run.key("resting")), num_prompts)

    def _call(self, fence: Fence, *, epoch: int, bits: bytes, keep_from: int, has_held: bool) -> int:
        pieces = [bits[start : start + _PIECE_BYTES] for start in range(0, len(bits), _PIECE_BYTES)]
        return number(self._run.call_fenced(fence, "rest", keep_from, epoch, int(has_held), *pieces)[1])


def rests_of(stored: Sequence[bytes] | dict[bytes, bytes], num_prompts: int) -> dict[int, bytes]:
    """Bits by epoch from the stored fields; what nobody of ours wrote is left out."""
    pairs = stored.items() if isinstance(stored, dict) else zip(stored[::2], stored[1::2], strict=True)
    size = (num_prompts + 7) // 8
    found: dict[int, bytearray] = {}
    for field, piece in pairs:
        named = _FIELD.fullmatch(text(field))
        start = int(named[2]) * _PIECE_BYTES if named else size
        if named and len(piece) == min(_PIECE_BYTES, max(0, size - start)):
            bits = found.setdefault(int(named[1]), bytearray(size))
            bits[start : start + len(piece)] = piece
    return {epoch: bytes(bits) for epoch, bits in found.items()}
