"""The laptop's task: adding numbers digit by digit, with a checker that cannot be fooled.

A prompt is `a+b=` with a fixed number of digits each; the answer is the sum's digits, least significant
first, and an end token. Later digits depend on carries, so a response is right only if every token is.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

PLUS, EQUALS, END = 10, 11, 12
VOCAB_SIZE = 13

TokenIds = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is asked, and the one right answer."""

    prompt_ids: TokenIds
    answer_ids: TokenIds

    def reward(self, response_ids: Sequence[int]) -> float:
        """1 for the whole answer with its end token, else 0."""
        return float(tuple(response_ids) == self.answer_ids)


class DigitAddition:
    """Problems by seed; a fixed set is held out and never trained on."""

    def __init__(self, *, num_digits: int, num_held_out: int) -> None:
        if num_digits < 1 or num_held_out < 1 or num_held_out > 100**num_digits // 2:
            raise ValueError(f"{num_held_out} of {100**num_digits} problems cannot be held out")
        self._num_digits = num_digits
        rng = random.Random(num_digits)
        seen: dict[tuple[int, int], None] = {}
        while len(seen) < num_held_out:
            seen[self._pair(rng)] = None
        self._held_out_pairs = frozenset(seen)
        self.held_out = [self.problem(*pair) for pair in seen]
        """The same for every seed of the study."""

    @property
    def max_response_tokens(self) -> int:
        """Room for the answer, its carry, its end, and one token too many."""
        return self._num_digits + 3

    @property
    def num_prompt_tokens(self) -> int:
        return 2 * self._num_digits + 2

    def draw(self, rng: random.Random, count: int) -> list[Problem]:
        """Problems to train on."""
        problems: list[Problem] = []
        while len(problems) < count:
            pair = self._pair(rng)
            if pair not in self._held_out_pairs:
                problems.append(self.problem(*pair))
        return problems

    def problem(self, left: int, right: int) -> Problem:
        """`left + right` as tokens."""
        prompt = (*self._digits(left), PLUS, *self._digits(right), EQUALS)
        answer = tuple(int(digit) for digit in reversed(str(left + right)))
        return Problem(prompt_ids=prompt, answer_ids=(*answer, END))

    def _pair(self, rng: random.Random) -> tuple[int, int]:
        limit = 10**self._num_digits
        return rng.randrange(limit), rng.randrange(limit)

    def _digits(self, number: int) -> TokenIds:
        return tuple(int(digit) for digit in reversed(str(number).zfill(self._num_digits)))
