"""The order by success: prompts whose groups have no signal, being always or never right, get rarer."""

from collections.abc import Iterable

import numpy as np

from asympo.common.errors import CorruptCheckpoint
from asympo.common.group_ids import parse_own_id

_LONGEST_STREAK = 3
_MIX, _WORD = 0x9E3779B97F4A7C15, 2**64


class SuccessOrder:
    """Which prompts rest: after n groups in a row without signal, in all but every 2^n-th epoch; n up to 3.

    One group with signal, and the prompt is asked in every epoch again. A function of the groups consumed and
    the seed alone.
    """

    def __init__(self, *, num_prompts: int, seed: int, streaks: bytes = b"") -> None:
        """`streaks`: as `to_bytes` gave them. Raises CorruptCheckpoint for anything else."""
        self._streaks = np.frombuffer(streaks or bytes(num_prompts), dtype=np.uint8).copy()
        if len(self._streaks) != num_prompts or self._streaks.max() > _LONGEST_STREAK:
            raise CorruptCheckpoint(
                "the training state does not hold how long each prompt was without signal: restore it, or "
                "start a new run"
            )
        # Each prompt has turns of its own, so that an epoch asks about as many as any other.
        index = np.arange(num_prompts, dtype=np.uint64) + np.uint64((seed * _MIX) % _WORD)
        self._turns = (index * np.uint64(_MIX) >> np.uint64(40)).astype(np.int64)

    def consumed(self, groups: Iterable[tuple[str, bool]]) -> None:
        """Ids of groups in the order of the log, and whether each had signal."""
        for group_id, has_signal in groups:
            own = parse_own_id(group_id)
            if own is not None and own[1] < len(self._streaks):
                longer = min(_LONGEST_STREAK, int(self._streaks[own[1]]) + 1)
                self._streaks[own[1]] = 0 if has_signal else longer

    def resting(self, epoch: int) -> bytes:
        """One bit a prompt, as `TrainedIds.rest` takes them; none when all would rest."""
        rests = (self._turns + epoch) % (1 << self._streaks.astype(np.int64)) != 0
        return np.packbits(rests & (not rests.all()), bitorder="little").tobytes()

    def to_bytes(self) -> bytes:
        """For the training state."""
        return self._streaks.tobytes()
