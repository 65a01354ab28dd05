"""The learner's device: what is meant is used, or it is said aloud."""

import logging

import pytest
import torch
from asympo.common.errors import BadSetting
from asympo.learner.device import choose_device
from asympo.learner.model.flops import FlopCount, known_peak, peak_of
from transformers import MixtralConfig, MixtralForCausalLM


@pytest.fixture
def _cuda_build_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError("Found no NVIDIA driver on your system.\nPlease check")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_cpu_build_trains_on_the_cpu_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    if torch.version.cuda:
        pytest.skip("torch is a CUDA build")
    with caplog.at_level(logging.WARNING):
        assert choose_device("auto") == choose_device("cpu") == "cpu"
    assert not caplog.records


@pytest.mark.usefixtures("_cuda_build_without_a_driver")
def test_cuda_build_without_a_driver_says_aloud_that_it_trains_on_the_cpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_device("auto") == "cpu"
    assert "Training on the CPU" in caplog.text
    assert "Found no NVIDIA driver on your system)" in caplog.text


@pytest.mark.usefixtures("_cuda_build_without_a_driver")
def test_gpu_that_was_asked_for_and_is_not_there_is_refused() -> None:
    with pytest.raises(
        BadSetting, match=r"device is cuda, and torch .* is built for CUDA 13.0 .*no NVIDIA"
    ) as e:
        choose_device("cuda")
    assert "\n" not in str(e.value)


def test_gpu_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (choose_device("auto"), choose_device("cuda"), choose_device("cpu")) == ("cuda", "cuda", "cpu")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", None),
    ],
)
def test_peak_is_known_by_the_whole_name_of_a_device(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_no_peak_is_known_of_a_cpu() -> None:
    assert known_peak(torch.device("cpu"), torch.bfloat16) is None


def test_experts_count_as_far_as_a_token_uses_them() -> None:
    config = MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = MixtralForCausalLM(config)
    attention, norms, router, experts = 4 * 16 * 16, 3 * 16, 4 * 16, 4 * 3 * 16 * 24
    assert FlopCount.of(model).per_token == 6 * (attention + norms + router + experts // 2)
