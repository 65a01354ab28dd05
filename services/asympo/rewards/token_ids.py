"""Token ids on their way to the scoring process: as JSON numbers they would cost more than all the rest."""

from array import array
from collections.abc import Sequence

_TYPE = "I"


def pack_ids(ids: Sequence[int]) -> str:
    """A text that stands for the ids."""
    return array(_TYPE, ids).tobytes().hex()


def unpack_ids(text: str) -> tuple[int, ...]:
    """The ids that the text stands for."""
    return tuple(array(_TYPE, bytes.fromhex(text)))
