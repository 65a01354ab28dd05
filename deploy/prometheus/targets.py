#!/usr/bin/env python3
"""Tells Prometheus where the services of one `asympo run` are: `targets.py runs/NAME [FOLDER]`.

Writes FOLDER/NAME.json, by default into the folder that prometheus.yml reads.
"""

import json
import sys
import tomllib
from pathlib import Path

FOLDER = Path(__file__).with_name("targets")
DEFAULT_PORTS = {"learner": 8080, "generator": 8081, "evaluator": 8083, "gateway": 8090}


def targets(run_directory: Path) -> list[dict[str, object]]:
    """One group of targets from the settings files that `asympo run` wrote for its services."""
    addresses = []
    for path in sorted((run_directory / "config").glob("*.toml")):
        values = tomllib.loads(path.read_text())
        service = path.stem.split("-")[0]
        port = values.get("http_port", DEFAULT_PORTS.get(service))
        addresses.append(f"{values.get('http_host', '127.0.0.1')}:{port}")
    if not addresses:
        sys.exit(f"{run_directory}/config holds no settings of services: give the directory of a started run")
    return [{"targets": addresses, "labels": {"run": run_directory.resolve().name}}]


def main(arguments: list[str]) -> None:
    if not 1 <= len(arguments) <= 2:
        sys.exit(__doc__.splitlines()[0])
    run_directory, folder = Path(arguments[0]), Path(arguments[1]) if len(arguments) > 1 else FOLDER
    found = targets(run_directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run_directory.resolve().name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
