"""Programs and packages that these tests need: skip without them on a laptop, fail in CI."""

import importlib
import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.conftest import require

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm/asympo/rules"
DASHBOARDS = ROOT / "helm/asympo/dashboards"


def program(name: str) -> str:
    """Path of a program of Debian's package prometheus."""
    found = shutil.which(name)
    require(found is not None, f"{name} (apt-get install --no-install-recommends prometheus)")
    return str(found)


def promql() -> Any:
    """The module promql_parser."""
    require(importlib.util.find_spec("promql_parser") is not None, "promql-parser (make setup)")
    return importlib.import_module("promql_parser")


def promtool(*arguments: str | Path, timeout_seconds: float = 120.0) -> str:
    """Its output; fails the test when it finds a fault."""
    command = [program("promtool"), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
