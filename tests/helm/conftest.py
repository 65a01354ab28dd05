"""The chart, rendered with the real helm."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deploy.chart import rendering
from tests.conftest import require

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/asympo"
CLUSTER = '(include "present" .)'
CRDS = ROOT.parent / "shared/crds"


@pytest.fixture(scope="session", autouse=True)
def chart_tools() -> Path:
    require((rendering.TOOLS / "bin/helm4").exists(), "helm (deploy/chart/tools.sh brings it)")
    return rendering.TOOLS


def chart_on_cluster(directory: Path, *objects: dict[str, Any]) -> Path:
    """A copy of the chart that finds these objects: it asks its cluster in one place, which is replaced."""
    chart = directory / "asympo"
    shutil.copytree(CHART, chart)
    path, question = chart / "templates/_cluster.tpl", "lookup .apiVersion .kind .namespace .name"
    assert path.read_text().count(question) == 1
    key = '(printf "%s/%s" .kind .name)'
    path.write_text(path.read_text().replace(question, f"get (fromJson {CLUSTER}) {key}"))
    present = {f"{each['kind']}/{each['metadata'].get('name', '')}": each for each in objects}
    helper = chart / "templates/_present.tpl"
    helper.write_text(
        '{{- define "present" -}}\n' + json.dumps(present).replace("{{", "{ {") + "\n{{- end }}\n"
    )
    return chart


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
        found[name] = rendering.objects(result.stdout)
    return found
