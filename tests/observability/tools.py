"""Programs and packages that these tests need: skip without them on a laptop, fail in CI."""

import importlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm/asympo/rules"
DASHBOARDS = ROOT / "helm/asympo/dashboards"


def _missing(sentence: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)


def program(name: str) -> str:
    """Path of a program of Debian's package prometheus."""
    found = shutil.which(name)
    if found is None:
        _missing(f"{name} is not here: apt-get install --no-install-recommends prometheus")
    return str(found)


def promql() -> Any:
    """The module promql_parser."""
    try:
        return importlib.import_module("promql_parser")
    except ImportError:
        return _missing("promql-parser is not here: make setup")


def promtool(*arguments: str | Path, timeout_seconds: float = 120.0) -> str:
    """Its output; fails the test when it finds a fault."""
    command = [program("promtool"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
