"""What the simulated engine says, and the tokenizer it falls back on when it is given none."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

Answers = Callable[[str], tuple[str, tuple[str, ...]]]
"""From the text of a prompt to the right answer and to wrong ones (at least one)."""


def answer_addition(prompt_text: str) -> tuple[str, tuple[str, ...]]:
    """The sum of the last two numbers in the prompt, against near misses; "yes" or "no" without numbers."""
    numbers = [int(digits) for digits in re.findall(r"\d+", prompt_text)[-2:]]
    if len(numbers) < 2:
        return "yes", ("no",)
    total = sum(numbers)
    return str(total), tuple(str(total + miss) for miss in (1, 2, 10, 7))


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseLength:
    """How many tokens a response would have if nothing cut it off."""

    kind: Literal["fixed", "lognormal"] = "lognormal"
    """`lognormal` has the long tail of real reasoning: a few responses many times the mean."""
    mean_tokens: float = 8.0
    sigma: float = 0.6
    """Spread of the logarithm; 1.5 makes the longest of 64 responses about 20 times the median."""

    def draw(self, rng: random.Random) -> int:
        """A length of at least one token."""
        if self.kind == "fixed":
            return max(1, round(self.mean_tokens))
        mu = math.log(self.mean_tokens) - self.sigma**2 / 2
        return max(1, round(rng.lognormvariate(mu, self.sigma)))


class ByteTokenizer:
    """Bytes as tokens, after three special ones; enough of the transformers interface for our prompts."""

    chat_template = "bytes"
    eos_token_id = 0
    all_special_tokens = all_special_ids = ()
    """None that a text could spell."""
    added_tokens_decoder: Mapping[int, Any] = MappingProxyType({})
    _SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")

    def __len__(self) -> int:
        return len(self._SPECIAL) + 256

    @property
    def vocab_size(self) -> int:
        return len(self)

    def get_vocab(self) -> dict[str, int]:
        """Token text to id; bytes appear as <0x41>."""
        special = {token: position for position, token in enumerate(self._SPECIAL)}
        return special | {f"<0x{byte:02X}>": byte + len(special) for byte in range(256)}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of the text's UTF-8 bytes; nothing is added either way."""
        return [byte + len(self._SPECIAL) for byte in text.encode()]

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """The text; bytes cut out of a character become U+FFFD."""
        pieces = bytearray()
        for token_id in token_ids:
            if token_id >= len(self._SPECIAL):
                pieces.append(token_id - len(self._SPECIAL))
            elif not skip_special_tokens:
                pieces += self._SPECIAL[token_id].encode()
        return pieces.decode(errors="replace")

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False, **_: Any
    ) -> list[int]:
        """Ids of the contents, each behind its turn's mark."""
        token_ids = []
        for message in messages:
            token_ids += [1, *self.encode(message["content"] + "\n")]
        return [*token_ids, 2] if add_generation_prompt else token_ids
