"""checkpoint diff and export on real policies: numbers against torch, exports loaded by transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from asympo.cli import main
from asympo.common.checkpoints import PolicyStore, Probe, ProbeSequence
from asympo.common.checkpoints.opening import open_policies
from asympo.common.rollout_log.evals.result import Estimate, EvalResult
from asympo.testing.tiny_model import write_tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

MOVED = "model.layers.1.mlp.up_proj.weight"
PROBE = Probe(sequences=(ProbeSequence(token_ids=(1, 2), num_prompt_tokens=1, mean_nll=1.0),), tolerance=0.1)
Weights = dict[str, torch.Tensor]
Asympo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def asympo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Asympo:
    """A verb of `asympo checkpoint` on the run; exit code, output, errors."""

    def call(verb: str, *argv: str) -> tuple[int, str, str]:
        code = main(["checkpoint", verb, "--run", "r", "--checkpoint-root", str(tmp_path), *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def store(tmp_path: Path, tiny_model: Path) -> PolicyStore:
    """Policies of steps 0 (the model), 1 (three values moved) and 2 (the model again)."""
    found = open_policies(tmp_path, "r")
    publish(found, tiny_model, step=0)
    publish(found, tiny_model, step=1, change=move_three)
    publish(found, tiny_model, step=2)
    (tmp_path / "r" / "config").mkdir()
    (tmp_path / "r" / "config" / "learner.toml").write_text(f"model = {json.dumps(str(tiny_model))}\n")
    rows = [result_of(step, mean).to_dict() for step, mean in ((0, 0.25), (1, 0.75), (2, 0.5))]
    (tmp_path / "r" / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def publish(
    store: PolicyStore, model: Path, *, step: int, change: Callable[[Weights], None] = lambda weights: None
) -> None:
    def fill(directory: Path) -> None:
        for path in model.iterdir():
            shutil.copy(path, directory / path.name)
        weights = load_file(directory / "model.safetensors")
        change(weights)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    store.publish(step=step, fence=1, fill=fill, probe=PROBE)


def move_three(weights: Weights) -> None:
    weights[MOVED].view(-1)[:3] += 0.5


def result_of(step: int, mean: float) -> EvalResult:
    return EvalResult(
        eval="sums",
        policy_step=step,
        policy_fence=1,
        last_policy_step=step,
        prompts=8,
        samples=2,
        mean=Estimate(value=mean, low=mean - 0.1, high=mean + 0.1),
        pass_at={},
    )


def test_diff_tells_which_tensors_moved_and_how_far(store: PolicyStore, asympo: Asympo) -> None:
    before, after = (load_file(ref.path / "model.safetensors")[MOVED] for ref in store.list()[:2])
    code, out, err = asympo("diff", "0", "best", "--json")
    assert not err
    found = json.loads(out)
    assert (code, found["is_equal"], found["changed"]) == (0, False, 3)
    assert found["values"] == sum(tensor["values"] for tensor in found["tensors"])
    [moved] = [tensor for tensor in found["tensors"] if tensor["changed"]]
    difference = after.double() - before.double()
    assert (moved["name"], moved["dtype"], moved["shape"]) == (MOVED, "BF16", [*before.shape])
    assert moved["max_abs"] == difference.abs().max()
    assert moved["relative_norm"] == pytest.approx(float(difference.norm() / before.double().norm()))
    assert 0 < found["delta_ratio"] < 0.01
    _, out, _ = asympo("diff", "0", "step-00000001-f0001")
    assert "3 of " in out
    assert "shared as a difference" in out
    assert MOVED in out
    _, out, _ = asympo("diff", "0", "last")
    assert out.startswith("no value of ")


def test_diff_rounds_the_finer_of_two_types_as_publishing_does(
    store: PolicyStore, asympo: Asympo, tmp_path: Path, tiny_model: Path
) -> None:
    weights = {name: value.float() for name, value in load_file(tiny_model / "model.safetensors").items()}
    # Less than half of a bfloat16 step away, and an infinite one: neither may count as moved, nor stop it.
    weights[MOVED] *= 1 + 2.0**-10
    weights["model.norm.weight"][0] = torch.inf
    weights["lm_head.weight"] = torch.zeros(1)
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(2, 2)
    (tmp_path / "wide").mkdir()
    save_file(weights, tmp_path / "wide" / "model.safetensors")
    code, out, _ = asympo("diff", str(tmp_path / "wide"), "0", "--json")
    found = json.loads(out)
    changed = {tensor["name"]: tensor for tensor in found["tensors"] if tensor["changed"]}
    expected = int((weights[MOVED].bfloat16() != load_file(tiny_model / "model.safetensors")[MOVED]).sum())
    assert changed.pop("model.norm.weight")["max_abs"] is None
    assert sum(tensor["changed"] for tensor in changed.values()) == expected
    assert (code, found["only_in_a"], found["max_abs"]) == (0, ["lm_head.weight"], None)
    assert found["delta_ratio"] is None
    assert found["other_shape"] == ["model.layers.0.mlp.up_proj.weight"]


def test_export_loads_and_answers_as_the_policy(store: PolicyStore, asympo: Asympo, tmp_path: Path) -> None:
    to = tmp_path / "out" / "model"
    code, out, err = asympo("export", "best", "--to", str(to), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["step"], found["differ_from_base"]) == (1, 1)
    assert found["logits_from_base"] > 0
    assert [path.name for path in to.parent.iterdir()] == ["model"]
    ref = store.find(step=1, fence=1)
    assert ref is not None
    ours = {path.name for path in ref.path.iterdir()} - {"manifest.json"} | {"README.md"}
    assert {path.name for path in to.iterdir()} == ours
    card = (to / "README.md").read_text()
    assert "# r, step 1" in card
    assert "| sums | step 1 | 8 | mean@2 0.750" in card
    assert "| sums | step 0 |" in card
    assert "step 2" not in card
    assert str(tmp_path) not in card
    ids = AutoTokenizer.from_pretrained(to)("1 + 1 = ", return_tensors="pt").input_ids
    logits = [AutoModelForCausalLM.from_pretrained(path, dtype="auto")(ids).logits for path in (to, ref.path)]
    assert torch.equal(*logits)
    code, _, err = asympo("export", "1", "--to", str(to))
    assert (code, err.count("\n")) == (2, 1)
    assert "exists" in err


def test_export_of_the_base_itself_is_refused_unless_nothing_was_trained(
    store: PolicyStore, asympo: Asympo, tmp_path: Path
) -> None:
    to = tmp_path / "out"
    code, _, err = asympo("export", "last", "--to", str(to))
    assert (code, err.count("\n")) == (1, 1)
    assert "none of its" in err
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    code, out, _ = asympo("export", "0", "--to", str(to))
    assert code == 0
    assert "before the first step" in out


def _flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


POLICY = "policy/step-00000001-f0001"
BAD: list[tuple[str, tuple[str, ...], Any]] = [
    ("no complete policy of step 7", ("7",), None),
    ("is no policy", ("newest",), None),
    ("different models", ("1", "--base", "{other}"), None),
    ("is not there", ("1", "--base", "{tmp}/nothing"), None),
    ("--base", ("1",), lambda run: shutil.rmtree(run / "config")),
    ("holds no results", ("best",), lambda run: (run / "evals.jsonl").unlink()),
    ("which sums likes best", ("best",), lambda run: shutil.rmtree(run / POLICY)),
    ("does not match", ("1",), lambda run: _flip_last_byte(run / POLICY / "model.safetensors")),
    ("no complete policy of step 1", ("1",), lambda run: (run / POLICY / "config.json").unlink()),
]


@pytest.mark.parametrize(("said", "argv", "spoil"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_bad_export_gets_one_sentence_and_leaves_nothing(
    store: PolicyStore,
    asympo: Asympo,
    tmp_path: Path,
    said: str,
    argv: tuple[str, ...],
    spoil: Callable[[Path], None] | None,
) -> None:
    if spoil is not None:
        spoil(tmp_path / "r")
    if any("{other}" in each for each in argv):
        write_tiny_model(tmp_path / "other", hidden_size=32)
    filled = [each.format(other=tmp_path / "other", tmp=tmp_path) for each in argv]
    code, _, err = asympo("export", *filled, "--to", str(tmp_path / "out"))
    assert code in (1, 2)
    assert err.count("\n") == 1
    assert said in err
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


@pytest.mark.parametrize(
    ("said", "sides"),
    [
        ("neither a policy", ("0", "nowhere")),
        ("holds no model.safetensors", ("0", "{tmp}")),
        ("no tensor of the same name", ("0", "{tmp}/alien")),
        ("truncated", ("0", "{tmp}/torn")),
        ("not comparable", ("0", "{tmp}/whole")),
    ],
)
def test_bad_diff_gets_one_sentence(
    store: PolicyStore, asympo: Asympo, tmp_path: Path, said: str, sides: tuple[str, str]
) -> None:
    for name, weights in (
        ("alien", {"h.0.weight": torch.zeros(2)}),
        ("whole", {"model.norm.weight": torch.zeros(64, dtype=torch.int32)}),
    ):
        (tmp_path / name).mkdir()
        save_file(weights, tmp_path / name / "model.safetensors")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"\xff" * 7)
    code, _, err = asympo("diff", *(side.format(tmp=tmp_path) for side in sides))
    assert code in (1, 2)
    assert err.count("\n") == 1
    assert said in err


def test_policy_of_a_run_that_is_not_named_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "diff", "1", "2"]) == 2
    assert "--run" in capsys.readouterr().err
