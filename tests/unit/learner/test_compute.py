"""Choices that change arithmetic are measured once and then kept."""

from typing import Any

import pytest
import torch
from asympo.learner import compute
from asympo.learner.compute import choose_compute
from asympo.learner.sharing import sharing_seconds


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured; sharing loses here."""
    calls: list[str] = []

    def loses(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
        calls.append(f"sharing on {device}")
        return 2.0, 1.0

    monkeypatch.setattr("asympo.learner.sharing.sharing_seconds", loses)
    monkeypatch.setattr(compute, "_faster_dtype", lambda device: "float32")
    return calls


def choose(decided: dict[str, Any], *, share_prefixes: compute.Sharing = "auto") -> compute.Compute:
    return choose_compute(device="cpu", compute_dtype="auto", share_prefixes=share_prefixes, decided=decided)


def test_sharing_is_measured_once_and_then_kept(measured: list[str]) -> None:
    first = choose({})
    assert not first.share_prefixes
    assert measured == ["sharing on cpu"]
    assert choose(first.to_decisions()) == first
    assert measured == ["sharing on cpu"]


@pytest.mark.parametrize(("setting", "expected"), [("always", True), ("never", False)])
def test_sharing_is_not_measured_when_settings_say(
    measured: list[str], setting: compute.Sharing, expected: bool
) -> None:
    assert choose({}, share_prefixes=setting).share_prefixes is expected
    assert measured == []


def test_sharing_is_measured_again_on_another_device(measured: list[str]) -> None:
    choose({"device": "cuda", "share_prefixes": True, "compute_dtype": "float32"})
    assert measured == ["sharing on cpu"]


def test_measuring_sharing_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert min(sharing_seconds(torch.device("cpu"), torch.float32)) > 0
    assert torch.equal(torch.get_rng_state(), before)
