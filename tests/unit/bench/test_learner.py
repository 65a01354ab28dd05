"""`asympo bench learner` on a tiny model: every number is there, and bad flags are named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from asympo.bench import loss_stage
from asympo.bench.cell import LearnerCell, Options, alternate
from asympo.bench.command import main
from asympo.bench.flops import step_flops
from asympo.bench.models import named_config
from asympo.bench.shapes import make_rollouts, parse_shape
from asympo.common.errors import BadSetting
from asympo.learner.policy import load_model
from asympo.learner.settings import LearnerSettings


def test_report_has_every_number_when_all_is_asked_for(tiny_model: Path) -> None:
    flags = ["--model", str(tiny_model), "--shape", "8/4/2x4", "--repeats", "1", "--json"]
    flags += ["--compute-dtype", "float32", "--only", "speed", "--only", "sharing", "--only", "parts"]
    done = subprocess.run(
        [sys.executable, "-m", "asympo.cli", "bench", "learner", *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for name in ("tokens_per_second", "peak_memory_bytes", "matmul_peak_share", "shared_prompt_speedup"):
        assert list(report[name]) == ["8/4/2x4"]
        assert report[name]["8/4/2x4"] > 0
    assert set(report["gain"]["8/4/2x4"]) == {
        "shared_prefixes",
        "chunked_head",
        "fused_optimizer",
        "packing",
    }


def test_loss_stage_needs_less_memory_in_chunks() -> None:
    """The bound is loose: what the libraries keep for themselves counts too, and differs from run to run."""
    report = loss_stage.measure(device="cpu", dtype="float32", rounds=1, num_tokens=4096, vocab_size=20480)
    assert report["loss_memory_ratio"] < 0.6


def test_whole_logits_arm_does_the_same_step(tiny_model: Path) -> None:
    """What is switched off changes time and memory only."""
    rollouts = make_rollouts(parse_shape("8/4/2x4"), vocab_size=500)
    results = [
        LearnerCell(load_model(tiny_model, dtype=torch.float32, device=torch.device("cpu"))).step(
            rollouts, options
        )
        for options in (Options(), Options(use_chunked_head=False), Options(share_prefixes=False))
    ]
    for other in results[1:]:
        assert other.grad_norm == pytest.approx(results[0].grad_norm, rel=1e-4)
        assert other.nll_positive == pytest.approx(results[0].nll_positive, rel=1e-4)
        assert other.entropy == pytest.approx(results[0].entropy, rel=1e-4)


def test_defaults_are_those_of_the_learner() -> None:
    fields = LearnerSettings.model_fields
    assert Options().token_budget == fields["token_budget"].default
    assert Options().chunk_rows == fields["head_chunk_rows"].default
    assert Options().share_prefixes


def test_arms_take_turns_and_the_first_round_is_not_timed() -> None:
    calls: list[str] = []

    def arm(name: str, seconds: list[float]):  # -> Callable[[], float]
        def run() -> float:
            calls.append(name)
            return seconds.pop(0)

        return run

    medians = alternate({"a": arm("a", [100, 1, 3, 2]), "b": arm("b", [100, 5, 5, 5])}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert medians == {"a": 2, "b": 5}


def test_step_operations_of_the_tiny_model_are_counted_by_hand(tiny_model: Path) -> None:
    model = load_model(tiny_model, dtype=torch.float32, device=torch.device("cpu"))
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64
    body = 2 * layer + 64
    assert step_flops(model, num_computed_tokens=10, num_head_rows=7, num_attended=55) == (
        6 * body * 10 + 6 * 512 * 64 * 7 + 3 * 4 * 64 * 2 * 55
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model-config", "qwen3-1.7b"], "--random-weights"),
        (["--random-weights"], "--model-config"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--shape", "1/2"], "--shape is 1/2"),
        (["--token-budgett", "5"], "--token-budgett"),
    ],
)
def test_bad_flags_are_named(flags: list[str], words: str) -> None:
    with pytest.raises(BadSetting, match=words):
        main(["learner", *flags])


def test_unknown_model_config_names_the_choices() -> None:
    with pytest.raises(BadSetting, match=r"qwen3-1\.7b"):
        named_config("qwen3-1.8b")
