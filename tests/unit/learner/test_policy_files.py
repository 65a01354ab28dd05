"""Policies of every kind of model: written, known again after a restart, refused in a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from asympo.common.checkpoints.opening import open_policies
from asympo.common.errors import BadModel, BadSetting, CorruptCheckpoint
from asympo.common.object_store import DeltaOptions
from asympo.learner.model.policy import Policy, end_token_ids, load_model
from asympo.learner.model.weights import Weights, named_weights
from asympo.learner.publish.policy_files import files_beside_weights, read_weights
from asympo.learner.publish.policy_writer import PolicyWriter
from asympo.learner.replay.archive_replay import first_difference
from asympo.learner.step.probe import fixed_probes
from asympo.tasks.base import TaskPrompt
from asympo.tasks.render import render_prompt
from asympo.tasks.tokenizer import load_tokenizer
from asympo.tasks.tokenizer_digest import tokenizer_digest
from asympo.testing.tiny_model import load_tiny_tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig

CPU = torch.device("cpu")
SIZE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
WITHOUT_GROUPS: dict[str, Any] = {
    name: value for name, value in SIZE.items() if name != "num_key_value_heads"
}

FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "plain": lambda: transformers.LlamaConfig(**SIZE, tie_word_embeddings=True),
    "experts in one tensor": lambda: transformers.MixtralConfig(
        **SIZE, num_local_experts=4, num_experts_per_tok=2
    ),
    "experts beside a shared one": lambda: transformers.Qwen2MoeConfig(
        **SIZE, moe_intermediate_size=32, shared_expert_intermediate_size=32, num_experts=4
    ),
    "head of another name": lambda: transformers.GPTNeoXConfig(**WITHOUT_GROUPS, tie_word_embeddings=False),
    "language model inside another": lambda: transformers.Gemma3Config(
        text_config={**SIZE, "head_dim": 32, "sliding_window": 16},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
    ),
    "weights passed to a child": lambda: transformers.DbrxConfig(
        d_model=64,
        n_heads=2,
        n_layers=2,
        max_seq_len=128,
        vocab_size=512,
        attn_config={"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 1e4},
        ffn_config={"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    ),
    "weights read by a parent": lambda: transformers.JambaConfig(
        **SIZE,
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        use_mamba_kernels=False,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
}


def make_model(directory: Path, config: PretrainedConfig) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)
    load_tiny_tokenizer(directory)
    return directory


def writer_for(model: Path, root: Path, *, deltas: DeltaOptions | None = None) -> PolicyWriter:
    shadow = load_model(model, dtype=torch.bfloat16, device=CPU).eval()
    return PolicyWriter(
        store=open_policies(root, "run", deltas=deltas),
        shadow=Policy(model=shadow, compute_dtype=torch.float32),
        tokenizer=load_tokenizer(str(model)),
        tolerance=0.05,
        keep=2,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_published_policy_is_recognised_after_a_restart(family: str, tmp_path: Path) -> None:
    source = make_model(tmp_path / "model", FAMILIES[family]())
    model = load_model(source, dtype=torch.float32, device=CPU)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.mul_(1.0 + 0.01 * (number % 7))
    weights = Weights(model=model, ranks=None)
    first = writer_for(source, tmp_path)
    ref = first.write(first.prepare(weights, step=3, fence=1))

    again = writer_for(source, tmp_path)
    assert again.adopt_newest() == ref
    assert again.is_published(weights)

    stored = read_weights(model, ref.path)
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in named_weights(model).items()}
    assert first_difference(stored, rounded) is None
    name, changed = list(model.named_parameters())[len(stored) // 2]
    with torch.no_grad():
        changed.view(-1)[-1] += 1.0
    assert not again.is_published(weights)
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in named_weights(model).items()}
    assert first_difference(stored, rounded) == name


def test_policy_that_there_is_no_room_to_rebuild_is_published_anew(tiny_model: Path, tmp_path: Path) -> None:
    weights = Weights(model=load_model(tiny_model, dtype=torch.float32, device=CPU), ranks=None)
    writer = writer_for(tiny_model, tmp_path, deltas=DeltaOptions(cache=tmp_path / "disk"))
    for step in (1, 2):
        ref = writer.write(writer.prepare(weights, step=step, fence=1))
    assert [*(tmp_path / "run" / "policy" / ref.name).glob("*.from-*")]
    (tmp_path / "full").touch()
    again = writer_for(tiny_model, tmp_path, deltas=DeltaOptions(cache=tmp_path / "full"))
    assert again.adopt_newest() is None
    assert not again.is_published(weights)
    anew = again.write(again.prepare(weights, step=2, fence=2))
    assert open_policies(tmp_path, "run").newest(with_digests=True) == anew


def test_policy_of_another_model_is_not_adopted(tmp_path: Path) -> None:
    small = make_model(tmp_path / "small", FAMILIES["plain"]())
    larger = transformers.LlamaConfig(**{**SIZE, "num_hidden_layers": 3}, tie_word_embeddings=True)
    model = load_model(make_model(tmp_path / "larger", larger), dtype=torch.bfloat16, device=CPU)
    with pytest.raises(CorruptCheckpoint, match=r"another model: model\.layers\.2"):
        read_weights(model, small)


def test_quantised_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    four_bits = BitsAndBytesConfig(load_in_4bit=True)
    AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=four_bits).save_pretrained(tmp_path)
    with pytest.raises(BadModel, match="is quantised: give the one that it was made from"):
        load_model(tmp_path, dtype=torch.float32, device=CPU)


def test_model_without_a_weight_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(BadModel, match=r"lacks lm_head\.weight: it would be trained from random values"):
        load_model(source, dtype=torch.float32, device=CPU)


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 0]}, True),
        ({"top_k": 20, "do_sample": False, "eos_token_id": [2, 0]}, True),
        ({"temperature": 0.6, "do_sample": True, "eos_token_id": [2, 0]}, True),
        ({"early_stopping": True, "temperature": 0.5, "eos_token_id": [2, 0], "pad_token_id": -1}, False),
        ({"length_penalty": 2.0, "output_scores": True, "eos_token_id": [2, 0]}, False),
        ({"eos_token_id": [2, 0], "some_new_flag": 3}, True),
    ],
)
def test_generation_config_that_transformers_would_not_write_is_mended(
    tiny_model: Path, tmp_path: Path, given: dict[str, Any], is_kept: bool
) -> None:
    source = shutil.copytree(tiny_model, tmp_path / "model")
    (source / "generation_config.json").write_text(json.dumps(given))
    writer = writer_for(source, tmp_path)
    model = load_model(source, dtype=torch.float32, device=CPU)
    ref = writer.write(writer.prepare(Weights(model=model, ranks=None), step=0, fence=1))
    written = json.loads((ref.path / "generation_config.json").read_text())
    assert written["eos_token_id"] == [2, 0]
    kept = {name: value for name, value in given.items() if name != "do_sample"}
    assert (kept.items() <= written.items()) is is_kept if "some_new_flag" not in given else True
    assert end_token_ids(load_model(ref.path, dtype=torch.float32, device=CPU)) == {0, 2}


def test_several_chat_templates_are_published_without_a_folder(tiny_model: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_model, tmp_path / "model")
    (source / "chat_template.jinja").write_text(load_tokenizer(str(tiny_model)).chat_template)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages[0]['content'] }} tools")
    tokenizer = load_tokenizer(str(source))
    assert set(tokenizer.chat_template) == {"default", "tool_use"}
    writer = writer_for(source, tmp_path)
    model = load_model(source, dtype=torch.float32, device=CPU)
    ref = writer.write(writer.prepare(Weights(model=model, ranks=None), step=0, fence=1))
    published = load_tokenizer(str(ref.path))
    assert published.chat_template == tokenizer.chat_template
    assert tokenizer_digest(published) == tokenizer_digest(tokenizer)
    prompt = TaskPrompt(index=0, messages=({"role": "user", "content": "Hi"},), answer="")
    assert render_prompt(prompt, published) == render_prompt(prompt, load_tokenizer(str(tiny_model)))


def test_chat_templates_without_a_default_are_refused_in_a_sentence(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = {"tool_use": tokenizer.chat_template, "rag": "{{ messages }}"}
    prompt = TaskPrompt(index=0, messages=({"role": "user", "content": "Hi"},), answer="")
    with pytest.raises(BadSetting, match="chat template refuses prompt 0"):
        render_prompt(prompt, tokenizer)


def test_tokenizer_that_writes_what_no_policy_may_hold_is_refused_at_start(tiny_model: Path) -> None:
    class Odd:
        def save_pretrained(self, directory: str) -> None:
            (Path(directory) / "tokenizer.py").write_text("import os")

    model = load_model(tiny_model, dtype=torch.bfloat16, device=CPU)
    with pytest.raises(BadModel, match=r"Odd writes tokenizer\.py, which a policy may not hold"):
        files_beside_weights(model, Odd())


def test_model_that_cannot_be_written_is_refused_in_a_sentence(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("\n shapes of experts\n more")

    writer = writer_for(tiny_model, tmp_path)
    model = load_model(tiny_model, dtype=torch.float32, device=CPU)
    prepared = writer.prepare(Weights(model=model, ranks=None), step=0, fence=1)
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", refuse)
    with pytest.raises(BadModel, match=r"cannot be written as a policy: shapes of experts$"):
        writer.write(prepared)
    assert open_policies(tmp_path, "run").list() == []


def words(vocabulary: dict[str, int], *, unknown: str | None = None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown or "none"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown)


@pytest.mark.parametrize(
    "tokenizer",
    [
        words({str(i): i for i in range(40)}),
        words({**{str(i): i for i in range(40)}, "?": 40}, unknown="?"),
        words({"0": 0, "1": 1}),
        words(
            {
                word: i
                for i, word in enumerate(
                    ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
                )
            }
        ),
    ],
)
@pytest.mark.parametrize("vocab_size", [41, 512])
def test_probes_are_found_whatever_the_tokenizer_can_write(tokenizer: Any, vocab_size: int) -> None:
    probes = fixed_probes(tokenizer, vocab_size=vocab_size)
    assert probes
    for probe in probes:
        assert len(set(probe.token_ids)) >= 2
        assert 0 <= min(probe.token_ids) <= max(probe.token_ids) < vocab_size
    assert probes == fixed_probes(tokenizer, vocab_size=vocab_size)
    assert tokenizer_digest(tokenizer) == tokenizer_digest(tokenizer)
