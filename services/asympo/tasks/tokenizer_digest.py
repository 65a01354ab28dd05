"""Whether two processes turn text into the same token ids."""

import hashlib
import json
from typing import Any

from asympo.tasks.encoding import TextRefused, encode

_SAMPLE_TEXTS = (
    "What is 12 + 7?\nAnswer: 19.",
    "  naïve café — 東京 \U0001f600\t\r\n 3.14159 foo_bar(x) != None",
    "<|im_start|>user\n</s>",
)
"""Texts on which normalisers and pre-tokenisers differ even where the vocabulary is the same."""


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 in hexadecimal over what decides token ids: vocabulary, splitting, template, end-of-sequence.

    Survives saving and loading. Padding is left out: every process pads as it likes and none sends padding.
    """
    content = {
        "vocab": sorted(tokenizer.get_vocab().items()),
        "samples": [_ids_of(text, tokenizer) for text in _SAMPLE_TEXTS],
        "chat_template": getattr(tokenizer, "chat_template", None),
        "eos_token_id": getattr(tokenizer, "eos_token_id", None),
    }
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _ids_of(text: str, tokenizer: Any) -> list[int] | None:
    try:
        return encode(tokenizer, text)
    except TextRefused:
        return None
