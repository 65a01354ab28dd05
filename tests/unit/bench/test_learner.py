"""`asympo bench learner` on a tiny model: every number is there, and bad flags are named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from asympo.bench.cell import LearnerCell, Options, alternate, whole_logits_nll
from asympo.bench.command import main
from asympo.bench.learner import join_shape
from asympo.bench.models import named_config
from asympo.bench.shapes import make_rollouts, parse_shape
from asympo.common.errors import BadSetting
from asympo.learner.model.flops import FlopCount
from asympo.learner.model.nll import HeadOptions, chunk_bounds, token_nll
from asympo.learner.model.policy import load_model
from asympo.learner.settings import HEAD_ROWS, LearnerSettings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@pytest.mark.slow
def test_report_has_every_number_when_all_is_asked_for(tiny_model: Path) -> None:
    flags = ["--model", str(tiny_model), "--shape", "8/4/2x4", "--repeats", "1", "--json"]
    flags += ["--compute-dtype", "float32", "--only", "speed", "--only", "sharing", "--only", "parts"]
    done = subprocess.run(
        [sys.executable, "-m", "asympo.cli", "bench", "learner", *flags],
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for name in (
        "tokens_per_second",
        "peak_memory_bytes",
        "matmul_peak_flops",
        "matmul_peak_share",
        "forward_backward_peak_share",
        "shared_prompt_speedup",
    ):
        assert list(report[name]) == ["8/4/2x4"]
        assert report[name]["8/4/2x4"] > 0
    assert set(report["gain"]["8/4/2x4"]) == {
        "shared_prefixes",
        "chunked_head",
        "fused_optimizer",
        "fused_layers",
        "packing",
    }
    assert report["forward_backward_peak_share"]["8/4/2x4"] > report["matmul_peak_share"]["8/4/2x4"]


def test_shapes_are_joined_in_their_order_and_the_load_is_that_before_the_first() -> None:
    report: dict[str, Any] = {"machine": {"load_average": 0.1}, "device": "cpu"}
    for shape, load in (("a", 1.7), ("b", 1.9)):
        part = {"machine": {"load_average": load}, "device": "cpu", "model": {"name": "demo"}}
        join_shape(report, part | {"matmul_peak_flops": {shape: 1e9 * load}})
    assert report == {
        "machine": {"load_average": 0.1},
        "device": "cpu",
        "model": {"name": "demo"},
        "matmul_peak_flops": {"a": 1.7e9, "b": 1.9e9},
    }
    assert list(report["matmul_peak_flops"]) == ["a", "b"]


class _LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes, backward included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return made


@pytest.mark.parametrize("is_chunked", [True, False])
def test_logits_of_all_tokens_exist_only_without_chunks(is_chunked: bool) -> None:
    num_tokens, vocab_size, chunk_rows = 256, 1000, 32
    hidden, weight = (
        torch.randn(num_tokens, 8, requires_grad=True),
        torch.randn(vocab_size, 8, requires_grad=True),
    )
    row, target = torch.arange(num_tokens), torch.randint(vocab_size, (num_tokens,))
    with _LargestTensor() as largest:
        if is_chunked:
            options = HeadOptions(chunk_rows=chunk_rows, max_kept_bytes=0)
            bounds = chunk_bounds(range(num_tokens), num_rows=num_tokens, chunk_rows=chunk_rows)
            nll, _ = token_nll(
                hidden, weight, None, row_N=row, target_N=target, token_bounds=bounds, options=options
            )
        else:
            nll = whole_logits_nll(hidden @ weight.T, target)
        nll.mean().backward()
    assert largest.num_elements == (chunk_rows if is_chunked else num_tokens) * vocab_size


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
    assert Options().chunk_rows == HEAD_ROWS["cpu"]
    assert Options().share_prefixes


def test_arms_take_turns_and_the_first_round_is_not_timed() -> None:
    calls: list[str] = []

    def arm(name: str, seconds: list[float]) -> Any:
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
    assert FlopCount.of(model).step(num_tokens=10, num_head_rows=7, num_pairs=55) == (
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
