"""What a run finds of GPUs and does with it; a stand-in torch answers as a CUDA build would."""

import sys
from pathlib import Path

import pytest
from asympo.common.errors import BadSetting
from asympo.doctor.checks import Target, check_machine
from asympo.doctor.findings import Level
from asympo.run.prepare import machine
from asympo.run.prepare.machine import Gpu, Machine, look_at_gpus

from tests.unit.run.test_configs import LAPTOP, plan_of, with_gpus

TORCH = """
import os
from types import SimpleNamespace
version = SimpleNamespace(cuda="13.0")
class Ones:
    def __mul__(self, other): return self
    def sum(self): return self
    def item(self): return 16.0
def ones(size, device): return Ones()
CARDS = {cards}
class cuda:
    @staticmethod
    def init():
        if {problem!r}: raise RuntimeError({problem!r})
    @staticmethod
    def device_count():
        assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        return len(CARDS) if named is None else len([each for each in named.split(",") if each])
    @staticmethod
    def get_device_properties(index):
        return SimpleNamespace(name=CARDS[index], total_memory=80 * 2**30, major=9, minor=0)
"""


def stand_in_torch(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    cards: tuple[str, ...] = ("H100", "H100"),
    problem: str = "",
) -> dict[str, str]:
    """An environment in which `import torch` is one that sees these cards, or cannot use any."""
    (directory / "torch.py").write_text(
        TORCH.replace("{cards}", repr(cards)).replace("{problem!r}", repr(problem))
    )
    monkeypatch.setattr(machine, "_installed", lambda package: "2.13.0+cu130")
    return {"PYTHONPATH": str(directory), "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("GPU-8f3c, GPU-77aa", ["GPU-8f3c", "GPU-77aa"]),
        ("MIG-4f6e1d2c", ["MIG-4f6e1d2c"]),
        ("", []),
    ],
)
def test_gpus_keep_the_names_that_cuda_visible_devices_gives_them(
    visible: str | None, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = stand_in_torch(tmp_path, monkeypatch)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    gpus, cuda, problem = look_at_gpus(environment)
    assert ([gpu.index for gpu in gpus], cuda, problem) == (names, "13.0", "")


def test_driver_that_torch_cannot_use_is_one_sentence_with_a_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = stand_in_torch(tmp_path, monkeypatch, problem="The NVIDIA driver is too old\nmore")
    gpus, cuda, problem = look_at_gpus(environment)
    assert (gpus, cuda) == ((), "13.0")
    assert "The NVIDIA driver is too old" in problem
    assert "580 or newer" in problem
    assert "\n" not in problem


def test_cpu_build_beside_a_card_is_told_how_to_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "_installed", lambda package: "2.13.0+cpu")
    gpus, cuda, problem = look_at_gpus({})
    assert (gpus, cuda) == ((), None)
    assert "NVIDIA H100 80GB HBM3 is here and not used" in problem
    assert "ASYMPO_DEVICE=cuda make setup" in problem


def test_torch_that_cannot_be_asked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13')")
    monkeypatch.setattr(machine, "_installed", lambda package: "2.13.0+cu130")
    gpus, _, problem = look_at_gpus({"PYTHONPATH": str(tmp_path)})
    assert gpus == ()
    assert "could not be asked" in problem


NO_DRIVER = Machine(
    cores=(0, 1),
    memory_bytes=8 * 2**30,
    gpus=(),
    cuda_version="13.0",
    gpu_problem="torch can use no GPU: fix that",
)


def test_run_on_a_cuda_build_without_a_driver_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="torch can use no GPU: fix that"):
        plan_of(tmp_path, NO_DRIVER)
    assert not list(tmp_path.iterdir())


def test_run_of_a_simulated_engine_goes_on_without_a_gpu_and_says_so(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, NO_DRIVER, generator={"engine": "simulated"})
    assert "torch can use no GPU: fix that" in plan.notes


def test_gpus_switched_off_are_refused_with_an_engine_that_needs_them(tmp_path: Path) -> None:
    gpus = (Gpu(index="0", name="H100", memory_bytes=80 * 2**30),)
    there = Machine(cores=(0, 1), memory_bytes=8 * 2**30, gpus=gpus, cuda_version="13.0")
    with pytest.raises(BadSetting, match=r"use_gpus is false.*ASYMPO_DEVICE=cpu"):
        plan_of(tmp_path, there, run={"use_gpus": False})


@pytest.mark.parametrize("found", [LAPTOP, NO_DRIVER])
def test_learner_that_was_told_cuda_is_refused_without_one(found: Machine, tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="no GPU"):
        plan_of(tmp_path, found, learner={"device": "cuda"}, generator={"engine": "simulated"})


def test_learner_beside_a_gpu_is_told_to_use_it(tmp_path: Path) -> None:
    assert plan_of(tmp_path, with_gpus(1)).learner.settings.device == "cuda"
    assert plan_of(tmp_path, with_gpus(1), learner={"device": "cpu"}).learner.settings.device == "cpu"
    assert plan_of(tmp_path, LAPTOP).learner.settings.device == "auto"


def test_processes_number_gpus_as_the_driver_lists_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, with_gpus(2))
    assert plan.learner.share.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize(
    ("num_gpus", "generator", "gib"),
    [
        (1, {}, 24.0),
        (1, {"count": 2}, 12.0),
        (1, {"vllm": {"gpu_memory_utilization": 0.6}}, 36.0),
        (1, {"vllm": {"kv_cache_gib": 7.5}}, 7.5),
        (2, {}, None),
    ],
)
def test_cache_beside_the_learner_has_a_size_that_no_race_decides(
    num_gpus: int, generator: dict[str, object], gib: float | None, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, with_gpus(num_gpus), generator=generator)
    assert plan.generators[0].settings.vllm.kv_cache_gib == gib


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (NO_DRIVER, Level.WRONG),
        (
            Machine(cores=(0, 1), memory_bytes=2**34, gpus=(), gpu_problem="a card is not used: install it"),
            Level.NOTE,
        ),
        (with_gpus(1), Level.OK),
    ],
)
def test_doctor_says_of_gpus_what_torch_says(
    found: Machine, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asympo.doctor.checks.look_at_machine", lambda: found)
    findings = list(check_machine(Target(directory=tmp_path, redis_url=None, ports=())))
    assert findings[-1].level is level
    if found.gpu_problem:
        assert findings[-1].text + ": " + findings[-1].repair == found.gpu_problem
    else:
        assert "torch computes on it" in findings[-1].text


@pytest.mark.skipif(sys.platform != "linux", reason="the build's name is Linux's")
def test_this_machine_answers_for_itself() -> None:
    gpus, cuda, problem = look_at_gpus({})
    assert bool(gpus) <= (cuda is not None)
    assert not (gpus and problem)
