"""The chart, rendered with the real helm."""

from pathlib import Path
from typing import Any

import pytest

from deploy.chart import rendering
from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/asympo"
CRDS = ROOT.parent / "shared/crds"


@pytest.fixture(scope="session", autouse=True)
def chart_tools() -> Path:
    require((rendering.TOOLS / "bin/helm4").exists(), "helm (deploy/chart/tools.sh brings it)")
    return rendering.TOOLS


@pytest.fixture(scope="session")
def values_files() -> list[Path]:
    """Every values file of the repository: examples and the combinations under ci/."""
    return [*rendering.example_values(CHART), *sorted((CHART / "ci").glob("*-values.yaml"))]


@pytest.fixture(scope="session")
def rendered(chart_tools: Path, values_files: list[Path]) -> dict[str, list[dict[str, Any]]]:
    """Objects by the values file they come from."""
    found = {}
    for path in values_files:
        result = rendering.template(CHART, values=[path])
        assert result.returncode == 0, f"{path}: {result.stderr}"
        name = str(path.relative_to(CHART))
        found[name] = rendering.objects(rendering.mask_random(result.stdout))
    return found
