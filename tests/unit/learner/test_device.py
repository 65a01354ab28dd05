"""The learner's device: what is meant is used, or it is said aloud."""

import logging

import pytest
import torch
from asympo.common.errors import BadSetting
from asympo.learner.device import choose_device


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
