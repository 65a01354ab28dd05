"""Choices that change arithmetic are measured once and then kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from asympo.common.checkpoints import digests
from asympo.common.errors import BadSetting
from asympo.learner.step import compute
from asympo.learner.step.compute import choose_compute, processor_class
from asympo.learner.step.trial import sharing_seconds


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was measured; sharing loses here."""
    calls: list[str] = []

    def loses(device: torch.device, dtype: torch.dtype, *, attention: str) -> tuple[float, float]:
        calls.append(f"sharing on {device}")
        return 2.0, 1.0

    def wins(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
        calls.append(f"attention on {device}")
        return 2.0, 1.0

    monkeypatch.setattr(compute, "choose_device", lambda asked: asked)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr("asympo.learner.step.trial.sharing_seconds", loses)
    monkeypatch.setattr("asympo.learner.step.trial.attention_seconds", wins)
    return calls


def choose(
    decided: dict[str, Any],
    *,
    share_prefixes: compute.Sharing = "auto",
    attention: str = "auto",
    device: str = "cpu",
    **options: Any,
) -> compute.Compute:
    return choose_compute(
        device=device,
        compute_dtype="float32",
        share_prefixes=share_prefixes,
        attention=attention,
        decided=decided,
        **options,
    )


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


def test_another_class_of_device_is_refused_unless_told_to_decide_anew(
    measured: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = choose({}).to_decisions()
    for was in ({**first, "device": "cuda"}, {**first, "processor": "x86_64 AMD AVX2"}):
        with pytest.raises(BadSetting, match=r"was trained on .*: continue on .* or give --decide-anew"):
            choose(was)
    measured.clear()
    anew = choose({**first, "processor": "x86_64 AMD AVX2", "share_prefixes": True}, decide_anew=True)
    assert measured == ["sharing on cpu"]
    assert anew.to_decisions() == first
    assert "was trained with processor x86_64 AMD AVX2 so far" in caplog.text


def test_decide_anew_measures_nothing_where_the_class_is_the_same(measured: list[str]) -> None:
    first = choose({})
    measured.clear()
    assert choose(first.to_decisions(), decide_anew=True) == first
    assert measured == []


def test_switches_that_libraries_read_are_of_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests themselves may be run with it.
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    plain = processor_class("cpu")
    assert torch.backends.cpu.get_cpu_capability() in plain
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert processor_class("cpu") == f"{plain} ONEDNN_MAX_CPU_ISA=AVX2"


def test_threads_of_the_first_start_are_kept_whatever_the_machine_has(measured: list[str]) -> None:
    before = torch.get_num_threads()
    try:
        first = choose({}, num_threads=before + 2)
        assert first.num_threads == torch.get_num_threads() == before + 2
        torch.set_num_threads(before)
        assert choose(first.to_decisions()).num_threads == torch.get_num_threads() == before + 2
        assert choose(first.to_decisions(), num_threads=1).num_threads == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_new_run_takes_no_more_threads_than_its_containers_quota(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000")
    monkeypatch.setattr(digests, "_CPU_MAX", tmp_path / "cpu.max")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)
        with monkeypatch.context() as patch:
            patch.setattr(digests, "visible_cores", lambda: list(range(64)))
            first = choose({})
        assert first.num_threads == torch.get_num_threads() == 2
        assert choose({**first.to_decisions(), "num_threads": 3}).num_threads == 3
    finally:
        torch.set_num_threads(before)


def test_measuring_sharing_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert min(sharing_seconds(torch.device("cpu"), torch.float32, attention="blocks")) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_is_measured_once_on_a_gpu_and_then_kept(measured: list[str]) -> None:
    first = choose({}, share_prefixes="always", device="cuda")
    assert first.attention == "flex"
    assert measured == ["attention on cuda"]
    assert choose(first.to_decisions(), share_prefixes="always", device="cuda") == first
    assert measured == ["attention on cuda"]


def test_run_of_before_there_was_a_choice_keeps_its_attention(measured: list[str]) -> None:
    decided = choose({}, share_prefixes="always", attention="blocks", device="cuda").to_decisions()
    del decided["attention"]
    assert choose(decided, share_prefixes="always", device="cuda").attention == "blocks"
    assert measured == []


def test_gpu_without_a_compiler_trains_in_blocks(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr("asympo.learner.step.trial.attention_seconds", fails)
    assert choose({}, share_prefixes="always", device="cuda").attention == "blocks"
    assert "no C compiler" in caplog.text


def test_flex_attention_is_refused_on_a_cpu(measured: list[str]) -> None:
    assert choose({}, share_prefixes="always").attention == "blocks"
    with pytest.raises(BadSetting, match="no gradients on CPUs"):
        choose({}, share_prefixes="always", attention="flex")
