"""Do TRL's and verl's own reward functions give through our scoring what they give when called by hand?

`make bench-parity` runs it, each library in the virtual environment of its lock, and writes `parity.json`
beside this file. Exits with 1 when a single value differs in its last digit.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENVS = {"trl": "peers-venv", "verl": "peers-verl-venv"}
_TIMEOUT_SECONDS = 1800


def main() -> int:
    report = {library: _measured(library, ROOT / ".cache" / venv) for library, venv in VENVS.items()}
    (HERE / "parity.json").write_text(json.dumps(report, indent=2) + "\n")
    num_different = 0
    for library, measured in report.items():
        for name, compared in measured["functions"].items():
            num_different += len(compared["different"])
            equal = compared["responses"] - len(compared["different"])
            version = measured["libraries"][library]
            sys.stdout.write(f"{library} {version} {name}: {equal} of {compared['responses']} are equal\n")
    return 1 if num_different else 0


def _measured(library: str, venv: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "services"), "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [str(venv / "bin/python"), str(HERE / "parity_arm.py"), library],
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
        timeout=_TIMEOUT_SECONDS,
    )
    measured: dict[str, Any] = json.loads(ended.stdout)
    return measured


if __name__ == "__main__":
    sys.exit(main())
