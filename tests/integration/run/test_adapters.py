"""checkpoint import: adapters as PEFT writes them are merged and load, or are refused in a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asympo.cli import main
from asympo.testing.tiny_model import write_tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYER = "model.layers.{}.{}"
MODULES = [LAYER.format(n, name) for n in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")]
Tensors = dict[str, torch.Tensor]


def write_adapter(path: Path, model: Path, *, rank: int = 4, **config: Any) -> Tensors:
    """An adapter of the model as PEFT writes one; returns its tensors by module and side."""
    torch.manual_seed(3)
    weights = load_file(model / "model.safetensors")
    pairs: Tensors = {}
    for module in MODULES:
        num_out, num_in = weights[f"{module}.weight"].shape
        pairs[f"{module}.lora_A"] = torch.randn(rank, num_in) / 8
        pairs[f"{module}.lora_B"] = torch.randn(num_out, rank) / 8
    path.mkdir()
    save_file(
        {f"base_model.model.{name}.weight": value for name, value in pairs.items()},
        path / "adapter_model.safetensors",
    )
    values = {"peft_type": "LORA", "base_model_name_or_path": str(model), "r": rank, "lora_alpha": 8}
    values |= {"use_dora": False, "modules_to_save": None, "bias": "none", "fan_in_fan_out": False}
    (path / "adapter_config.json").write_text(json.dumps(values | config))
    return pairs


def asympo(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["checkpoint", "import", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, (2.0, 2.0)),
        ({"use_rslora": True}, (4.0, 4.0)),
        ({"alpha_pattern": {"down_proj": 2}}, (2.0, 0.5)),
    ],
)
def test_merged_adapter_is_a_model_that_answers_as_base_and_adapter_do(
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    config: dict[str, Any],
    scales: tuple[float, float],
) -> None:
    pairs = write_adapter(tmp_path / "adapter", tiny_model, **config)
    to = tmp_path / "merged"
    code, out, err = asympo(capsys, str(tmp_path / "adapter"), "--to", str(to), "--json")
    assert code == 0, err
    assert json.loads(out)["changed"] == len(MODULES)
    before, after = (load_file(path / "model.safetensors") for path in (tiny_model, to))
    for name, value in before.items():
        module = name.removesuffix(".weight")
        if module in MODULES:
            scale = scales["down_proj" in module]
            a, b = pairs[f"{module}.lora_A"], pairs[f"{module}.lora_B"]
            # In one order, so that everybody gets the same bits.
            product = torch.zeros(len(b), a.shape[1])
            for row, column in zip(a, b.T, strict=True):
                product += column[:, None] * row
            value = (value.float() + scale * product).bfloat16()
        assert torch.equal(after[name], value), name
    ids = AutoTokenizer.from_pretrained(to)("1 + 1 = ", return_tensors="pt").input_ids
    merged = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32)(ids).logits
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    base = model(ids).logits
    for module in MODULES:
        model.get_submodule(module).register_forward_hook(_adds(pairs, module, scales["down_proj" in module]))
    apart = model(ids).logits
    # The merged weights are rounded to bfloat16, the sum of two products is not.
    assert (merged - apart).abs().max() < 0.05 * (base - apart).abs().max()


def _adds(pairs: Tensors, module: str, scale: float) -> Callable[..., torch.Tensor]:
    def hook(_: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output + scale * inputs[0] @ pairs[f"{module}.lora_A"].T @ pairs[f"{module}.lora_B"].T

    return hook


@pytest.mark.parametrize(
    ("said", "config"),
    [
        ("of the kind IA3", {"peft_type": "IA3"}),
        ("use_dora", {"use_dora": True}),
        ("modules_to_save", {"modules_to_save": ["lm_head"]}),
        ("init_lora_weights", {"init_lora_weights": "pissa_niter_4"}),
        ("bias", {"bias": "all"}),
        ("was trained on Qwen/Qwen3-0.6B and not on", {"base_model_name_or_path": "Qwen/Qwen3-0.6B"}),
        ("trained on another model", {"base_model_name_or_path": None, "other": 128}),
        ("quantised", {"quantised": True}),
        ("changes no value", {"lora_alpha": 0}),
        ("has no fitting A and B", {"lone": True}),
        ("only matrices of linears", {"embedding": True}),
        ("cannot be read", {"torn": True}),
        ("a model already", {"is_model": True}),
        ("exists", {"target": True}),
    ],
)
def test_adapter_that_cannot_be_added_is_refused_in_one_sentence_and_leaves_nothing(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], said: str, config: dict[str, Any]
) -> None:
    base, adapter = tmp_path / tiny_model.name, tmp_path / "adapter"
    shutil.copytree(tiny_model, base)
    write_adapter(adapter, base, **config)
    weights = load_file(adapter / "adapter_model.safetensors")
    if "other" in config:
        shutil.rmtree(base)
        write_tiny_model(base, hidden_size=config["other"])
    if "quantised" in config:
        values = json.loads((base / "config.json").read_text())
        values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        (base / "config.json").write_text(json.dumps(values))
    if "lone" in config:
        del weights[max(weights)]
    if "embedding" in config:
        weights["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 8)
    save_file(weights, adapter / "adapter_model.safetensors")
    if "torn" in config:
        (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    if "target" in config:
        (tmp_path / "merged").symlink_to("nowhere")
    given = tiny_model if "is_model" in config else adapter
    code, out, err = asympo(capsys, str(given), "--to", str(tmp_path / "merged"), "--base", str(base))
    assert (out, err.count("\n")) == ("", 1)
    assert code in (1, 2)
    assert said in err
    assert [path.name for path in tmp_path.iterdir() if "merged" in path.name] == [
        *(["merged"] if "target" in config else [])
    ]
