"""The guide's table of memory is what `asympo run --dry-run` would say."""

from pathlib import Path

import pytest
from asympo.common.settings import validate
from asympo.learner.settings import LearnerSettings
from asympo.run.estimate import estimate

GUIDE = Path(__file__).parents[3] / "docs/operations.md"
MODELS = {
    "0.135 B (SmolLM2)": (134_515_008, 30, 576, 1536, 49_152),
    "1.7 B (Qwen3)": (1_720_574_976, 28, 2048, 6144, 151_936),
    "4 B (Qwen3)": (4_022_468_096, 36, 2560, 9728, 151_936),
    "8 B (Qwen3)": (8_190_735_360, 36, 4096, 12_288, 151_936),
}
"""Parameters, layers, hidden size, size of the MLP, vocabulary."""
SETTINGS = ({"token_budget": 1024}, {"token_budget": 16_384, "gradient_checkpointing": True})


def estimates(model: str) -> list[int]:
    """GiB of the learner under each of the settings, and of a generator."""
    size, layers, hidden, inner, vocabulary = MODELS[model]
    shape = {
        "num_parameters": size,
        "num_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "num_prompt_tokens": 256,
        "num_answer_tokens": 2048,
    }
    found = []
    for each in SETTINGS:
        values = {"groups_per_step": 64, "sampling": {"max_tokens": 2048}, **each}
        guess = estimate(
            *(shape, validate(LearnerSettings, values)),
            kv_cache_gib=1,
            flops_learner=None,
            flops_generators=None,
        )
        found.append(guess.learner_bytes)
    return [round(each / 2**30) for each in (*found, guess.generator_bytes)]


@pytest.mark.parametrize("model", MODELS)
def test_table_of_memory_is_what_the_estimate_says(model: str) -> None:
    (row,) = (line for line in GUIDE.read_text().splitlines() if line.startswith(f"| {model} |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    small, large, generator = estimates(model)
    size = MODELS[model][0]
    host = round((4 * size + 0.45 * 2**30) / 2**30)
    assert cells[1:] == [f"{each} GiB" for each in (small, large, host, generator)]
