"""One word, one thing: no two classes of the product share a name."""

import ast
from collections import defaultdict

from tests.unit.house.test_dialect import PRODUCT, where
from tests.unit.house.test_sizes import tree

EXCEPTIONS: dict[str, str] = {}
"""Names of several classes, each with its reason."""


def test_no_two_classes_share_a_name() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for path in PRODUCT:
        for node in tree(path).body:
            # What begins with an underscore is not seen elsewhere.
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(where(path, node))
    shared = {name: places for name, places in found.items() if len(places) > 1}
    assert shared.keys() <= EXCEPTIONS.keys(), f"give each a name of its own: {shared}"
    assert EXCEPTIONS.keys() <= shared.keys(), "an exception that is not needed"
