"""What the worker extension compares, without an engine."""

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from asympo.common import errors
from asympo.common.checkpoints.digests import tensor_entries
from asympo.engines.vllm_readback import Expectation
from asympo.engines.vllm_worker import (
    TensorRow,
    _Handed,
    _kind,
    _perturbed,
    _ties,
    _worked_out,
    tensor_digest,
)
from asympo.generator.reload.verdict import Verdict, judge
from torch import nn


def rows_of(tensors: dict[str, torch.Tensor]) -> list[TensorRow]:
    return [(name, "BF16", list(t.shape), tensor_digest(t)) for name, t in tensors.items()]


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"layers.0.w": (4, 3), "layers.1.w": (4, 3), "norm": (3,)}
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


def test_digest_is_that_of_the_file(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors")
    entries = tensor_entries([tmp_path / "model.safetensors"])
    assert {entry.name: entry.sha256 for entry in entries} == {
        name: tensor_digest(tensor) for name, tensor in tensors.items()
    }
    assert tensor_digest(tensors["layers.0.w"].T.contiguous().T) == tensor_digest(tensors["layers.0.w"])


def test_tensors_of_the_manifest_pass(tensors: dict[str, torch.Tensor]) -> None:
    handed = _Handed(rows_of(tensors))
    assert dict(handed.checked(iter(tensors.items()))).keys() == tensors.keys()
    handed.require_complete(None)
    assert handed.num_tensors == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "norm": t["norm"] + 1}, "other values for norm"),
        (lambda t: {**t, "norm": t["norm"].float()}, r"norm as F32 \[3\]; the manifest says BF16 \[3\]"),
        (lambda t: {**t, "norm": t["norm"][:2]}, r"norm as BF16 \[2\]"),
        (lambda t: {**t, "extra": t["norm"]}, "extra, which the manifest does not list"),
    ],
)
def test_wrong_tensor_is_named(tensors: dict[str, torch.Tensor], change: Any, message: str) -> None:
    handed = _Handed(rows_of(tensors))
    with pytest.raises(errors.CorruptCheckpoint, match=message):
        list(handed.checked(iter(change(tensors).items())))


def test_missing_and_repeated_tensors_are_named(tensors: dict[str, torch.Tensor]) -> None:
    handed = _Handed(rows_of(tensors))
    list(handed.checked(iter([("norm", tensors["norm"])])))
    with pytest.raises(errors.CorruptCheckpoint, match=r"2 tensors .* never reached the engine, layers.0.w"):
        handed.require_complete(None)
    handed.require_complete(lambda name: name.startswith("layers."))
    with pytest.raises(errors.CorruptCheckpoint, match="twice"):
        list(handed.checked(iter([("norm", tensors["norm"])])))


def test_perturbation_changes_its_kind_and_nothing_else(tensors: dict[str, torch.Tensor]) -> None:
    assert {_kind(name) for name in tensors} == {"layers.*.w", "norm"}
    changed = dict(_perturbed(iter(tensors.items()), "layers.*.w"))
    assert torch.equal(changed["norm"], tensors["norm"])
    for name in ("layers.0.w", "layers.1.w"):
        assert not torch.equal(changed[name], tensors[name])
        assert changed[name].dtype == tensors[name].dtype
    zeros = {"layers.0.bias": torch.zeros(5)}
    assert dict(_perturbed(iter(zeros.items()), "layers.*.bias"))["layers.0.bias"].abs().min() > 0


def test_tied_parameters_are_found_by_identity() -> None:
    head = torch.nn.Linear(3, 5, bias=False)
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "head": head})
    assert _ties(model) == []
    head.weight = model["embed"].weight  # type: ignore[assignment]
    assert _ties(model) == [["embed.weight", "head.weight"]]


def test_worker_exits_soon_after_its_client_was_killed() -> None:
    client = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    code = f"from asympo.engines.vllm_worker import PolicyWorkerExtension as W; W().exit_with({client.pid})"
    worker = subprocess.Popen(
        [sys.executable, "-c", f"{code}\nimport time; print(1, flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(1.5)
    client.kill()  # not reaped: a zombie counts as gone
    assert worker.wait(10) == 1
    client.wait()


@pytest.mark.parametrize(
    ("is_there", "num_changed", "verdict"), [(True, 0, Verdict.UNCHANGED), (False, None, Verdict.UNPROVEN)]
)
def test_nothing_is_proved_without_the_weights_before(
    is_there: bool,
    num_changed: int | None,
    verdict: Verdict,
    tmp_path: Path,
    tensors: dict[str, torch.Tensor],
) -> None:
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors")
    taken: list[str] = []

    def fill(weights: Iterable[tuple[str, torch.Tensor]], take: Any, **_: Any) -> None:
        taken.extend(name for name, _ in weights)

    expectation = Expectation(cast(Any, SimpleNamespace(model=nn.Module(), fill=fill)), seed=0, num_columns=8)
    before = tmp_path if is_there else tmp_path / "trimmed"
    readback = _worked_out(expectation, tmp_path, before, torch.bfloat16).compare(nn.Module())
    assert readback.num_changed == num_changed
    assert judge(replace(readback, num_values=1), None).verdict is verdict
    assert set(taken) == set(tensors)
