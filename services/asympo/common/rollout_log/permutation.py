"""The order of prompts: a seeded permutation per epoch, computed one draw at a time.

A balanced Feistel network over the smallest even number of bits that holds ``num_prompts``, walked until the
result is a valid index (fewer than four walks on average). Its round function is SHA-1 because that is what
``acquire.lua`` has at hand (``redis.sha1hex``); script and module must stay equal, and a test compares them.
"""

import hashlib

NUM_ROUNDS = 6


def permuted_index(*, seed: int, epoch: int, position: int, num_prompts: int) -> int:
    """The prompt index drawn at ``position`` of ``epoch``; both in [0, num_prompts)."""
    if not 0 <= position < num_prompts:
        raise ValueError(f"position {position} is outside [0, {num_prompts})")
    half_bits = max(1, ((num_prompts - 1).bit_length() + 1) // 2)
    value = position
    while True:
        value = _feistel(value, half_bits=half_bits, label=f"{seed}:{epoch}")
        if value < num_prompts:
            return value


def _feistel(value: int, *, half_bits: int, label: str) -> int:
    """One keyed bijection of [0, 4**half_bits)."""
    half = 1 << half_bits
    left, right = divmod(value, half)
    for number in range(NUM_ROUNDS):
        digest = hashlib.sha1(f"{label}:{number}:{right}".encode(), usedforsecurity=False).hexdigest()
        left, right = right, left ^ (int(digest[:7], 16) % half)
    return left * half + right
