"""Every values file renders, with both helms, to objects that Kubernetes knows field by field."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.chart import rendering
from tests.helm.conftest import CHART, CRDS, ROOT

OLDEST, NEWEST = "1.25", "1.37"


def check_strictly(objects: list[Any]) -> list[str]:
    request = {"objects": objects, "versions": [OLDEST, NEWEST], "crds": str(CRDS) if CRDS.is_dir() else None}
    result = subprocess.run(
        [rendering.TOOLS / "venv/bin/python", ROOT / "tests/helm/strict_objects.py"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
    )
    if not CRDS.is_dir():
        print(f"custom resources were not checked: {CRDS} is not there")
    return json.loads(result.stdout)


def test_every_object_passes_the_strict_schemas(rendered: dict[str, list[dict[str, Any]]]) -> None:
    seen, objects = set(), []
    for name, things in rendered.items():
        for thing in things:
            # The same object comes from several values files.
            key = json.dumps(thing, sort_keys=True)
            if key not in seen:
                seen.add(key)
                objects.append((name, thing))
    kinds = {thing["kind"] for _, thing in objects}
    assert {"StatefulSet", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor"} <= kinds
    assert check_strictly(objects) == []


def test_strict_check_finds_wrong_fields_types_quantities_and_kinds(
    rendered: dict[str, list[dict[str, Any]]],
) -> None:
    deployment = next(
        each for each in rendered["examples/two-gpus/values.yaml"] if each["kind"] == "Deployment"
    )

    def broken(
        name: str, change: Callable[[dict[str, Any], dict[str, Any]], object]
    ) -> tuple[str, dict[str, Any]]:
        copy = json.loads(json.dumps(deployment))
        change(copy, copy["spec"]["template"]["spec"]["containers"][0])
        return name, copy

    cases = [
        broken("field", lambda thing, _: thing["spec"].update(replica=1)),
        broken("type", lambda thing, _: thing["spec"].update(replicas="one")),
        broken("quantity", lambda _, container: container["resources"]["limits"].update(memory="12XB")),
        broken("version", lambda thing, _: thing.update(apiVersion="apps/v1beta1")),
        ("kind", {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {}}),
    ]
    found = check_strictly(cases)
    assert {each.partition(":")[0] for each in found} == {name for name, _ in cases}


def test_helm_3_renders_what_helm_4_renders(rendered: dict[str, list[dict[str, Any]]]) -> None:
    for name, things in rendered.items():
        result = rendering.template(CHART, values=[CHART / name], helm="helm3")
        assert result.returncode == 0, f"{name}: {result.stderr}"
        assert rendering.objects(result.stdout) == things


def test_lint_is_clean() -> None:
    for helm in ("helm3", "helm4"):
        values = CHART / "examples/two-gpus/values.yaml"
        command: list[str | Path] = [
            rendering.TOOLS / "bin" / helm,
            "lint",
            "--strict",
            CHART,
            "--values",
            values,
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


def test_generated_files_are_current() -> None:
    from deploy.chart import generate

    assert generate.write_or_check(generate.generated(), is_check=True) == 0, "repair: make chart-generate"
    examples = rendering.rendered_examples(CHART)
    assert generate.write_or_check(examples, is_check=True) == 0, "repair: make chart-generate"


def test_notes_name_the_next_commands() -> None:
    command: list[str | Path] = [
        rendering.TOOLS / "bin/helm4",
        "install",
        "--dry-run=client",
        "asympo",
        CHART,
        "--namespace",
    ]
    values = CHART / "examples/laptop-cpu/values.yaml"
    command += ["training", "--values", values]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    notes = result.stdout.partition("NOTES:")[2]
    assert "Run addition: one learner and 1 generator, embedded broker." in notes
    assert "port-forward service/asympo-learner 8080:8080" in notes
    page = (ROOT / "docs/kubernetes.md").read_text()
    assert notes.strip() in page, "the notes in docs/kubernetes.md are not what helm prints"


@pytest.mark.parametrize("value", ["learner.settings.grop_size=4", "checkpoints.accessMode=ReadWriteOnce"])
def test_refusals_in_the_guide_are_what_helm_says(value: Any) -> None:
    result = rendering.template(CHART, sets=["model.path=/checkpoints/m", value])
    sentence = result.stderr.partition("\n\nUse --debug")[0].strip()
    assert sentence in (ROOT / "docs/kubernetes.md").read_text()


def test_guide_lists_every_image_to_mirror(rendered: dict[str, list[dict[str, Any]]]) -> None:
    listed = set(re.findall(r"`([a-z/-]+:[a-z0-9.-]+)`", (ROOT / "docs/kubernetes.md").read_text()))
    found = set()
    for name, things in rendered.items():
        # Under ci/ images have other registries and digests.
        if name.startswith("examples/"):
            images = re.findall(r"'image': '([^']+)'", str(things))
            found |= {each.removeprefix("registry.example.com/team/") for each in images}
    assert found == {each for each in listed if each.startswith(("asympo-", "valkey/"))}


def test_files_of_rules_and_dashboards_are_rendered_when_present(tmp_path: Path) -> None:
    chart = tmp_path / "asympo"
    shutil.copytree(CHART, chart)
    (chart / "rules/example.yaml").write_text(
        "groups:\n  - name: learner\n    rules:\n      - {alert: Down, expr: 'up == 0', for: 5m}\n"
    )
    (chart / "dashboards/example.json").write_text('{"title": "Fleet {{ run }}"}\n')
    text = rendering.template(chart, values=[chart / "ci/monitoring-values.yaml"]).stdout
    things = rendering.objects(text)
    rule = next(each for each in things if each["metadata"]["name"] == "asympo-example")
    assert rule["spec"]["groups"][0]["rules"][0]["alert"] == "Down"
    board = next(each for each in things if each["metadata"]["name"] == "asympo-dashboard-example")
    assert json.loads(board["data"]["example.json"]) == {"title": "Fleet {{ run }}"}
    assert check_strictly([("test", rule), ("test", board)]) == []


def test_every_value_has_a_description_and_every_object_is_closed() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def walk(node: Any, path: Any) -> None:
        for key, each in node.get("properties", {}).items():
            where = f"{path}.{key}"
            is_setting = ".settings." in where
            assert each.get("description") or (is_setting and "properties" in each) or is_setting, where
            if "properties" in each:
                assert each["additionalProperties"] is False, where
                walk(each, where)

    walk(schema, "")
    assert schema["additionalProperties"] is False


def emptied(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """None for every list and object that is empty by default and not given."""
    found: dict[str, Any] = {}
    for key, value in defaults.items():
        if isinstance(value, dict) and value:
            found[key] = emptied(value, given.get(key, {}))
        elif value in ([], {}) and key not in given:
            found[key] = None
    return found


def test_what_is_empty_by_default_may_be_null(tmp_path: Path) -> None:
    everything = (ROOT / "tests/helm/cases/everything.yaml").read_text().partition("\n---\n")[0]
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    given, nulls = tmp_path / "given.yaml", tmp_path / "nulls.yaml"
    given.write_text(everything)
    nulls.write_text(json.dumps(emptied(defaults, yaml.safe_load(everything))))
    assert nulls.read_text().count("null") > 60
    result = rendering.template(CHART, values=[given, nulls])
    assert result.returncode == 0, result.stderr


def test_examples_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"`examples/([a-z-]+)`", (CHART / "README.md").read_text()))
    assert named == {path.parent.name for path in rendering.example_values(CHART)}


def test_every_value_of_the_release_before_is_still_one() -> None:
    model = "model.path=/checkpoints/models/any"
    result = rendering.template(CHART, values=[ROOT / "tests/compat/v0.1/values.yaml"], sets=[model])
    assert result.returncode == 0, result.stderr
    assert rendering.objects(result.stdout)
