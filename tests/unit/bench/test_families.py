"""The table of families: what it says of twenty of them is what the check finds."""

import json

import pytest
from asympo.bench.families import check_family, family_names
from asympo.bench.tables import ROOT

ROWS = {row["family"]: row for row in json.loads((ROOT / "benchmarks/families.json").read_text())["families"]}
TWENTY = {
    "llama with Llama-3 RoPE": "packed",
    "mistral": "packed",
    "qwen2 with sliding windows": "packed",
    "qwen2_moe with sliding windows": "packed",  # windows that only the mask knows
    "phimoe with sliding windows": "packed",
    "qwen3 with YaRN": "packed",
    "gemma2": "packed",  # scores are capped
    "gemma3_text": "packed",
    "gpt_oss": "packed",  # sinks
    "granite with scaled logits": "packed",
    "deepseek_v3": "packed",  # values of another size than keys
    "gpt2": "packed",  # dropout, learned positions
    "phi3 with LongRoPE": "packed up to 4096 tokens",
    "llama with dynamic RoPE": "packed up to 2048 tokens",
    "bloom": "one by one",  # ALiBi
    "lfm2 with convolutions": "one by one",
    "qwen3_next": "one by one",  # gated norms, state along the row
    "stablelm": "own forward, sdpa",
    "deepseek_v32": "own forward, sdpa",  # chooses keys itself
    "cpmant": "refused",  # not causal
}


@pytest.mark.parametrize("family", TWENTY)
def test_family_is_computed_as_the_table_says(family: str) -> None:
    row = check_family(family)
    assert row["path"] == TWENTY[family] == ROWS[family]["path"], row["reason"]
    assert row["gradient_checkpointing"] is (None if row["path"] == "refused" else True)


def test_table_has_every_family_of_the_installed_transformers() -> None:
    assert list(ROWS) == family_names(), "repair: make bench-models"
