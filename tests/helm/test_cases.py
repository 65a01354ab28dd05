"""Values that people give, as files under `cases/`, each with its outcome in the lines that begin with `#=`.

An outcome says with which words the values are `refused` (or at which path, `refused_by_schema`), or
which part of which `objects` must be there, what is `absent`, and which words the text `contains` or `lacks`.
`release`, `kube_version`, `api_versions` and what the `cluster` already holds are given to Helm.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.chart import rendering
from tests.helm.conftest import CHART, chart_on_cluster
from tests.helm.test_rendering import check_strictly

CASES = Path(__file__).with_name("cases")
NAMES = sorted(str(path.relative_to(CASES).with_suffix("")) for path in CASES.glob("*/*.yaml"))
MODEL = CASES / "model.yaml"


@cache
def outcome_of(name: str) -> dict[str, Any]:
    lines = (CASES / f"{name}.yaml").read_text().splitlines()
    found: dict[str, Any] = yaml.safe_load("\n".join(line[3:] for line in lines if line.startswith("#= ")))
    return found


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """What Helm says of a case, once for each Helm."""

    @cache
    def result(name: str, helm: str) -> Any:
        outcome, chart = outcome_of(name), CHART
        if "cluster" in outcome:
            chart = chart_on_cluster(tmp_path_factory.mktemp("cluster"), *outcome["cluster"])
        return rendering.template(
            chart,
            values=[MODEL, CASES / f"{name}.yaml"],
            helm=helm,
            release=outcome.get("release", rendering.RELEASE),
            kube_version=outcome.get("kube_version", rendering.KUBE_VERSION),
            api_versions=[*rendering.OPERATOR_KINDS, *outcome.get("api_versions", [])],
        )

    return result


def slashed(text: str) -> str:
    """Helm 3 writes a.b.0 where Helm 4 writes /a/b/0."""
    return re.sub(r"(?m)^- ([\w.]+)", lambda found: "/" + found[1].replace(".", "/"), text)


def missing(wanted: Any, found: Any, where: str = "") -> str:
    """Where `found` lacks a part of `wanted`; of a list every wanted element has to be among those found."""
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            return f"{where}: {found!r} is no object"
        return next(
            filter(None, (missing(each, found.get(key), f"{where}.{key}") for key, each in wanted.items())),
            "",
        )
    if isinstance(wanted, list):
        rest = found or []
        lacking = [each for each in wanted if all(missing(each, other) for other in rest)]
        return f"{where}: no {lacking[0]!r} among {rest!r}" if lacking else ""
    return "" if wanted == found and type(wanted) is type(found) else f"{where}: {found!r}, not {wanted!r}"


@pytest.mark.parametrize(
    ("helm", "name"),
    [
        *(("helm4", name) for name in NAMES),
        # What it renders is compared with Helm 4 elsewhere.
        *(("helm3", name) for name in NAMES if "objects" not in outcome_of(name)),
    ],
)
def test_case_has_its_outcome(name: str, helm: str, render: Callable[[str, str], Any]) -> None:
    outcome, result = outcome_of(name), render(name, helm)
    for key in ("refused", "refused_by_schema"):
        if key in outcome:
            assert result.returncode != 0, "it renders"
            said = result.stderr if helm == "helm4" or key == "refused" else slashed(result.stderr)
            assert outcome[key] in said
            assert ("specifications of the schema" in result.stderr) == (key == "refused_by_schema")
            return
    assert result.returncode == 0, result.stderr
    found = rendering.objects(result.stdout)
    things = {f"{each['kind']}/{each['metadata']['name']}": each for each in found}
    assert len(things) == len(found), "two objects of one name"
    for key, wanted in outcome["objects"].items():
        assert key in things, sorted(things)
        assert not missing(wanted, things[key]), missing(wanted, things[key])
    assert not set(outcome.get("absent", [])) & set(things)
    assert all(words in result.stdout for words in outcome.get("contains", []))
    assert not any(words in result.stdout for words in outcome.get("lacks", []))


def test_what_the_cases_render_passes_the_strict_schemas(render: Callable[[str, str], Any]) -> None:
    seen: dict[str, tuple[str, Any]] = {}
    for name in NAMES:
        for thing in rendering.objects(render(name, "helm4").stdout):
            newer = thing["kind"] == "HTTPRoute" or outcome_of(name).get("kube_version")
            if not newer:
                seen.setdefault(repr(thing), (name, thing))
    assert check_strictly(list(seen.values())) == []


def test_rendering_twice_gives_the_same_bytes() -> None:
    values = CHART / "examples/laptop-cpu/values.yaml"
    first, second = (rendering.template(CHART, values=[values]).stdout for _ in range(2))
    assert first
    assert first == second


def test_two_long_releases_have_different_names() -> None:
    found = set()
    for last in "ab":
        result = rendering.template(CHART, values=[MODEL], release="r" * 50 + last)
        found |= {
            each["metadata"]["name"] for each in rendering.objects(result.stdout) if each["kind"] == "Service"
        }
        assert all(len(name) <= 63 for name in found)
    assert len(found) == 6
