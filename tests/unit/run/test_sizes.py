"""One estimate of memory: the guide's table is what it says, and it says what the learner's steps take."""

from pathlib import Path

import pytest
from asympo.common.settings import validate
from asympo.learner.settings import LearnerSettings
from asympo.run.prepare.dry_run import model_shape
from asympo.run.prepare.needs import learner_bytes, needs_of
from transformers import AutoConfig

from tests.unit.run.fake_learner import peak_bytes

GUIDE = Path(__file__).parents[3] / "docs/operations.md"
MODELS = {
    "0.135 B (SmolLM2)": (134_515_008, 30, 576, 1536, 768, 49_152),
    "1.7 B (Qwen3)": (1_720_574_976, 28, 2048, 6144, 3072, 151_936),
    "4 B (Qwen3)": (4_022_468_096, 36, 2560, 9728, 5120, 151_936),
    "8 B (Qwen3)": (8_190_735_360, 36, 4096, 12_288, 5120, 151_936),
}
"""Parameters, layers, hidden size, size of the MLP, widths of queries and keys, vocabulary."""
SETTINGS = ({"token_budget": 1024}, {"token_budget": 16_384, "gradient_checkpointing": True})


def shape_of(size: int, layers: int, hidden: int, inner: int, widths: int, vocabulary: int) -> dict[str, int]:
    return {
        "num_parameters": size,
        "is_tied": True,
        "num_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "is_gated_silu": True,
        "attention_width": widths,
        "vocab_size": vocabulary,
        "num_prompt_tokens": 256,
        "num_answer_tokens": 2048,
    }


def estimates(model: str) -> list[int]:
    """GiB of the learner on a GPU under each of the settings, and of a generator."""
    found = []
    for each in SETTINGS:
        values = {"groups_per_step": 64, "sampling": {"max_tokens": 2048}, **each}
        guess = needs_of(
            *(shape_of(*MODELS[model]), validate(LearnerSettings, values)),
            device="cuda",
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "vocabulary", "is_checkpointed", "rank"),
    [
        ("qwen3", 4096, False, None),
        ("qwen3", 4096, True, None),
        ("qwen3", 60_000, True, None),
        ("llama", 4096, False, None),
        ("qwen3", 4096, False, 16),
        ("qwen3", 60_000, True, 16),
    ],
)
def test_estimate_is_what_steps_on_tensors_without_data_take(
    kind: str, vocabulary: int, is_checkpointed: bool, rank: int | None
) -> None:
    """Layers decide in the first ones, the head in the third; a model without norms of queries keeps less."""
    hidden, inner, layers, heads, num_tokens, rows = 256, 768, 4, 4, 4096, 512
    config = AutoConfig.for_model(
        model_type=kind,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=64,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    values = {"gradient_checkpointing": is_checkpointed, "head_chunk_rows": rows}
    settings = validate(LearnerSettings, values | ({"lora": {"rank": rank}} if rank else {}))
    guess = learner_bytes(model_shape(kind, config), settings, device="cuda", row_tokens=num_tokens)
    taken = peak_bytes(
        config,
        num_tokens=num_tokens,
        is_checkpointed=is_checkpointed,
        chunk_rows=rows,
        lora=settings.lora,
    )
    assert guess == pytest.approx(taken, rel=0.12)


def test_adapter_of_stacked_experts_counts_every_expert() -> None:
    config = AutoConfig.for_model(
        model_type="mixtral",
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=8,
        vocab_size=128,
    )
    shape = model_shape("mixtral", config)
    attention, router = (64 + 64) + 2 * (64 + 32) + (64 + 64), 64 + 8
    assert shape["matrix_sides"] == 2 * (attention + router + 8 * (64 + 2 * 96) + 8 * (96 + 64))
    assert shape["largest_matrix"] == 8 * 64 * 2 * 96
    assert shape["stacked"] == 2 * 8 * 3 * 64 * 96

    def needed(**values: object) -> int:
        given = validate(LearnerSettings, {"lora": {"rank": 1}, **values})
        return learner_bytes(shape, given, device="cpu", row_tokens=1)

    # On a CPU merged experts are float32 until the backward, or those of one layer where it is computed anew.
    assert needed() - needed(gradient_checkpointing=True) > 4 * shape["stacked"] // 2 - 10_000
