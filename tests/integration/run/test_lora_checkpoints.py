"""`asympo checkpoint` on adapters: verified with their base, compared, taken away."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asympo.cli import main
from asympo.common.checkpoints import PolicyStore
from asympo.common.checkpoints.opening import open_policies
from asympo.learner.model.lora import import_peft
from asympo.learner.model.policy import load_model

from tests.unit.learner.adapters.test_adapter_policies import WEIGHTS, flip, move, publish, writer_for
from tests.unit.learner.adapters.test_lora import adapted

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 5, 9, 4, 7, 3]])
Asympo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path, tiny_model: Path) -> PolicyStore:
    """The base as step 0 and an adapter as step 1."""
    policy = adapted(tiny_model, noise=0.0)
    writer = writer_for(policy, tiny_model, tmp_path)
    publish(writer, policy, step=0)
    move(policy, seed=0)
    publish(writer, policy, step=1)
    return open_policies(tmp_path, "run")


@pytest.fixture
def asympo(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path) -> Asympo:
    def call(verb: str, *argv: str) -> tuple[int, str, str]:
        base = ("--base", str(tiny_model)) if verb == "export" else ()
        flags = ("--run", "run", "--checkpoint-root", str(tmp_path), *base)
        code = main(["checkpoint", verb, *flags, *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def test_adapter_is_verified_with_its_base(store: PolicyStore, asympo: Asympo) -> None:
    code, out, _ = asympo("list", "--json")
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["full", "adapter"]
    code, out, _ = asympo("verify", "--json")
    assert (code, {json.loads(line)["state"] for line in out.splitlines()}) == (0, {"verified"})
    flip(store.list()[0].path / WEIGHTS)
    code, out, _ = asympo("verify")
    assert code == 1
    assert "2 of 2 policies are damaged" in out
    assert "the base has changed" in out


def test_difference_is_that_of_the_merged_weights(store: PolicyStore, asympo: Asympo) -> None:
    code, out, _ = asympo("diff", "0", "1", "--json")
    found = json.loads(out)
    assert code == 0
    moved = {tensor["name"].split(".")[-2] for tensor in found["tensors"] if tensor["changed"]}
    assert moved == {*("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")}


def test_merged_export_is_a_plain_model_that_is_not_the_base(
    store: PolicyStore, asympo: Asympo, tmp_path: Path, tiny_model: Path
) -> None:
    to = tmp_path / "merged"
    code, out, err = asympo("export", "last", "--merge", "--to", str(to), "--json")
    assert code == 0, err
    assert json.loads(out)["differ_from_base"] == 2 * 7
    assert not [*to.glob("adapter*")]
    last = store.list()[-1]
    store.verify(last)
    exported, served = (load_model(path, dtype=torch.float32, device=CPU) for path in (to, last.path))
    assert torch.equal(logits(exported), logits(served))
    assert not torch.equal(logits(exported), logits(load_model(tiny_model, dtype=torch.float32, device=CPU)))


def test_adapter_export_is_one_that_peft_loads_and_that_answers_as_the_policy(
    store: PolicyStore, asympo: Asympo, tmp_path: Path, tiny_model: Path
) -> None:
    to = tmp_path / "adapter"
    code, _, err = asympo("export", "last", "--adapter", "--to", str(to))
    assert code == 0, err
    assert {path.name for path in to.iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors")
    }
    last = store.list()[-1]
    store.verify(last)
    base, start, served = (
        load_model(path, dtype=torch.float32, device=CPU) for path in (tiny_model, tiny_model, last.path)
    )
    loaded = import_peft().PeftModel.from_pretrained(base, str(to))
    wanted = logits(served)
    assert (logits(loaded) - wanted).abs().max() < 0.1 * (logits(start) - wanted).abs().max()


def test_whole_policy_has_no_adapter_to_export(store: PolicyStore, asympo: Asympo, tmp_path: Path) -> None:
    code, _, err = asympo("export", "0", "--adapter", "--to", str(tmp_path / "out"))
    assert (code, err.count("\n")) == (2, 1)
    assert "the policy of step 0 is no adapter" in err
    assert not (tmp_path / "out").exists()


def store_path(root: Path) -> Path:
    store = open_policies(root, "run")
    return store.path / store.list()[-1].name


def test_adapter_of_a_rounded_base_is_exported_for_that_base_alone(
    asympo: Asympo, tmp_path: Path, tiny_model: Path
) -> None:
    policy = adapted(tiny_model, noise=0.0, base_bits=8)
    writer = writer_for(policy, tiny_model, tmp_path)
    publish(writer, policy, step=0)
    move(policy, seed=0)
    publish(writer, policy, step=1)

    code, _, err = asympo("export", "last", "--adapter", "--to", str(tmp_path / "out"))
    assert (code, err.count("\n")) == (2, 1)
    assert "values that differ in model.layers.0." in err
    assert not (tmp_path / "out").exists()
    # Nobody is led to the model whose values were rounded.
    config = json.loads((store_path(tmp_path) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    code, out, err = asympo("export", "0", "--to", str(tmp_path / "base"), "--json")
    assert (code, json.loads(out)["differ_from_base"]) == (0, 2 * 7), err
    flags = ("--adapter", "--to", str(tmp_path / "out"), "--base", str(tmp_path / "base"))
    code, _, err = asympo("export", "last", *flags)
    assert code == 0, err
    code, _, err = asympo("export", "last", "--to", str(tmp_path / "merged"))
    assert code == 0, err
    paths = (tmp_path / "base", tmp_path / "merged")
    base, merged = (load_model(path, dtype=torch.float32, device=CPU) for path in paths)
    start, wanted = logits(base), logits(merged)
    assert "PeftModel.from_pretrained" in (tmp_path / "out" / "README.md").read_text()
    given = (str(tmp_path / "out"), "--to", str(tmp_path / "imported"))
    assert main(["checkpoint", "import", *given]) == 2
    assert main(["checkpoint", "import", *given, "--base", str(tmp_path / "base")]) == 0
    imported = load_model(tmp_path / "imported", dtype=torch.float32, device=CPU)
    assert torch.equal(logits(imported), wanted)
    loaded = import_peft().PeftModel.from_pretrained(base, str(tmp_path / "out"))
    assert (logits(loaded) - wanted).abs().max() < 0.1 * (start - wanted).abs().max()
