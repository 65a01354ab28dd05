"""What the chart's values may change about each alert of its rules."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
THRESHOLD = " # threshold"
"""Follows, in an expression, the number that a value may replace."""
_CHANGES = {
    "enabled": {"type": "boolean", "description": "Whether it is rendered."},
    "for": {
        "type": "string",
        "pattern": r"^(0|([0-9]+(d|h|m|s|ms))+)$",
        "description": "How long it must hold before it fires.",
    },
    "severity": {"enum": ["info", "warning", "critical"], "description": "Its label severity."},
}
_THRESHOLD = {
    "type": ["number", "string"],
    "pattern": r"^[0-9]+(\.[0-9]+)?$",
    "minimum": 0,
    "description": "The number that it compares with.",
}


def definitions() -> dict[str, Any]:
    """What may be said about an alert without a threshold, and about one that has it."""
    closed = {"type": "object", "additionalProperties": False}
    return {
        "alert": {**closed, "properties": _CHANGES},
        "alertWithThreshold": {**closed, "properties": {**_CHANGES, "threshold": _THRESHOLD}},
    }


def changes(folder: str) -> dict[str, Any]:
    """A schema for each alert of a folder of rules, by its name."""
    files = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / folder).glob("*.yaml"))]
    rules = [rule for each in files for group in each["groups"] for rule in group["rules"]]
    return {
        rule["alert"]: {
            "description": f"{rule['alert']}, {rule['labels']['severity']}.",
            "allOf": [{"$ref": "#/definitions/alert" + "WithThreshold" * (THRESHOLD in rule["expr"])}],
        }
        for rule in rules
        if "alert" in rule
    }
