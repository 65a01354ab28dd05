"""The chart's README: fixed text around a table of all values."""

import json
from pathlib import Path
from typing import Any

from deploy.chart import values_source

_TEXT = Path(__file__).with_name("README.md.in")


def readme(source: dict[str, Any]) -> str:
    """README.md.in with the table of values put in."""
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for leaf in values_source.iter_leaves(source):
        default = f"`{_cell(leaf.default)}`" if leaf.default else ""
        rows.append(f"| `{'.'.join(leaf.path)}` | {default} | {_meaning(leaf.node)} |")
    return _TEXT.read_text().replace("@VALUES@", "\n".join(rows))


def _meaning(node: dict[str, Any]) -> str:
    text = _cell(node["description"])
    if "enum" in node:
        text += " One of " + ", ".join(f"`{json.dumps(value)}`" for value in node["enum"]) + "."
    return text


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
