"""The order of prompts: a seeded permutation per epoch, computed one draw at a time.

A balanced Feistel network over the smallest even number of bits that holds `num_prompts`, walked until the
result is a valid index (fewer than four walks on average). Its round keys come from one SHA-1, its rounds are
multiplications that doubles hold exactly, because that is what `acquire.lua` can do quickly. Script and
module must stay equal, and a test compares them.
"""

import functools
import hashlib

NUM_ROUNDS = 6
_KEY_DIGITS = 6
_MULTIPLIER = 73244475
_WORD, _LOW_BITS = 1 << 32, 1 << 26


def permuted_index(*, seed: int, epoch: int, position: int, num_prompts: int) -> int:
    """The prompt index drawn at `position` of `epoch`; both in [0, num_prompts)."""
    if not 0 <= position < num_prompts:
        raise ValueError(f"position {position} is not between 0 and {num_prompts - 1}")
    half_bits = max(1, ((num_prompts - 1).bit_length() + 1) // 2)
    round_keys = _round_keys(f"{seed}:{epoch}")
    value = position
    while True:
        value = _feistel(value, half_bits=half_bits, round_keys=round_keys)
        if value < num_prompts:
            return value


@functools.lru_cache(maxsize=64)
def _round_keys(label: str) -> tuple[int, ...]:
    digest = hashlib.sha1(label.encode(), usedforsecurity=False).hexdigest()
    starts = range(0, NUM_ROUNDS * _KEY_DIGITS, _KEY_DIGITS)
    return tuple(int(digest[start : start + _KEY_DIGITS], 16) for start in starts)


def _feistel(value: int, *, half_bits: int, round_keys: tuple[int, ...]) -> int:
    """One keyed bijection of [0, 4**half_bits)."""
    half = 1 << half_bits
    left, right = divmod(value, half)
    for key in round_keys:
        mixed = (right + key) * _MULTIPLIER % _WORD
        mixed = (mixed ^ (mixed >> 15)) % _LOW_BITS
        mixed = mixed * _MULTIPLIER % _WORD
        left, right = right, left ^ ((mixed ^ (mixed >> 13)) % half)
    return left * half + right
