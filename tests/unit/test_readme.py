"""The README's table of guarantees names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT.joinpath("README.md").read_text().split("| event | promise | test |")[1].split("\n\n")[0]
ROWS = [row for row in TABLE.splitlines() if row.startswith("| ")]
NAMED = re.findall(r"`(tests/[^`]+)`", TABLE)


@pytest.mark.parametrize("name", NAMED)
def test_test_named_in_the_guarantees_exists(name: str) -> None:
    path, _, function = name.partition("::")
    assert ROOT.joinpath(path).is_file(), name
    if function:
        tree = ast.parse(ROOT.joinpath(path).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in names, name


def test_every_guarantee_names_a_test() -> None:
    assert len(ROWS) >= 12
    for row in ROWS:
        assert re.search(r"`tests/[^`]+`", row), row
