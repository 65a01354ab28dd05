"""Every text among the values stays text in every object, whatever it looks like."""

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.chart import rendering, values_source
from tests.helm.conftest import CHART, ROOT

LOOKS = ("20261128", "1e6", "true", "null", "0x1f", "x1")
"""What a careless template turns into something else; the last where a name has to begin with a letter."""
TEMPLATES = sorted((CHART / "templates").rglob("*.*"))
_SCALAR = re.compile(r"^\s*(?:- )?(?:[\w./-]+: |- )(?=\S*\{\{ )(.*)$")
_QUOTED = ("toJson }}", "toJson }}]", "quote }}", "| int }}", "}}{{ end }}", "| fromJson }}")
_QUOTES_ITSELF = ('include "asympo.quantity"', "{{ div ", "{{ mul ", "{{ if ", "toYaml", "nindent")


@cache
def leaves() -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    source = values_source.load(ROOT / "deploy/chart/values.schema.yaml")
    return [
        (leaf.path, leaf.node)
        for leaf in values_source.iter_leaves(source)
        if leaf.node.get("type") == "string" and "enum" not in leaf.node
    ]


def with_looks(given: dict[str, Any], look: str) -> tuple[dict[str, Any], set[tuple[str, ...]]]:
    """The values with every text that may be anything replaced, and which those were."""
    values, changed = copy.deepcopy(given), set()
    for path, node in leaves():
        place: Any = values
        for key in path[:-1]:
            place = place.get(key, {}) if isinstance(place, dict) else {}
        if place.get(path[-1]) and re.search(node.get("pattern", ""), look):
            place[path[-1]] = look
            changed.add(path)
    return values, changed


def scalars(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        for each in node.values():
            yield from scalars(each)
    elif isinstance(node, list):
        for each in node:
            yield from scalars(each)
    else:
        yield node


def everything() -> list[dict[str, Any]]:
    """Values that together give every text that the chart takes."""
    return list(yaml.safe_load_all((Path(__file__).parent / "cases/everything.yaml").read_text()))


def others_than_text(values: dict[str, Any], path: Path) -> Counter[str]:
    """Numbers, switches and nulls of all that is rendered."""
    path.write_text(json.dumps(values))
    result = rendering.template(CHART, values=[path])
    assert result.returncode == 0, result.stderr
    return Counter(
        repr(each)
        for thing in rendering.objects(result.stdout)
        for each in scalars(thing)
        if not isinstance(each, str)
    )


@pytest.mark.parametrize("document", [0, 1, 2])
def test_every_text_stays_text(document: int, tmp_path: Path) -> None:
    given = everything()[document]
    plain = others_than_text(given, tmp_path / "plain.yaml")
    for look in LOOKS:
        values, changed = with_looks(given, look)
        assert changed
        assert others_than_text(values, tmp_path / "changed.yaml") == plain, look


def test_every_text_of_the_schema_was_tried() -> None:
    tried = set()
    for given in everything():
        for look in LOOKS:
            tried |= with_looks(given, look)[1]
    may_be_anything = {
        path for path, node in leaves() if any(re.search(node.get("pattern", ""), look) for look in LOOKS)
    }
    assert may_be_anything - tried == set()


def test_no_template_writes_a_scalar_unquoted() -> None:
    for path in TEMPLATES:
        if path.name in ("NOTES.txt", "_refusals.tpl", "_data.tpl") or path.suffix == ".md":
            continue
        for line in path.read_text().splitlines():
            found = _SCALAR.match(line)
            if (
                found
                and not found[1].endswith(_QUOTED)
                and not any(each in found[1] for each in _QUOTES_ITSELF)
            ):
                raise AssertionError(f"{path.relative_to(CHART)}: {line.strip()}: end it with `| toJson`")
