"""Writes the chart's generated files: values and their schema, README.md, default settings of the services,
rendered examples.

.venv/bin/python -m deploy.chart.generate            write them
.venv/bin/python -m deploy.chart.generate --check    fail, with a difference, where one is not current
"""

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import Any

from asympo.common.rollout_log.broker.users import command_rules, key_rules

from deploy.chart import readme, rendering, service_settings, values_source

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/asympo"
SERVICES = ("learner", "generator", "evaluator", "gateway")


def generated() -> dict[Path, str]:
    """Every generated file but the rendered examples, which need the others on disk."""
    defaults = {service: service_settings.settings_defaults(service) for service in SERVICES}
    users = {role: broker_user(role) for role in (*SERVICES, "operator")}
    source = values_source.load(ROOT / "deploy/chart/values.schema.yaml")
    return {
        CHART / "values.yaml": values_source.values_yaml(source),
        CHART / "values.schema.json": values_source.schema_text(source),
        CHART / "README.md": readme.readme(source),
        CHART / "files/default-settings.json": json.dumps(defaults, indent=1, sort_keys=True) + "\n",
        CHART / "files/broker-users.json": json.dumps(users, indent=1, sort_keys=True) + "\n",
    }


def broker_user(role: str) -> dict[str, Any]:
    """Rules of one role; `@run@` is the name of a run."""
    return {"keys": key_rules(role, "@run@"), "commands": " ".join(command_rules(role))}


def write_or_check(files: dict[Path, str], *, is_check: bool) -> int:
    """Number of files that were not current."""
    num_stale = 0
    for path, text in files.items():
        before = path.read_text() if path.exists() else ""
        if before == text:
            continue
        num_stale += 1
        if not is_check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            continue
        name = str(path.relative_to(ROOT))
        difference = difflib.unified_diff(
            before.splitlines(), text.splitlines(), name, name + " (current)", lineterm=""
        )
        sys.stderr.write("\n".join(list(difference)[:40]) + "\n")
    return num_stale


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if anything would change")
    is_check = parser.parse_args().check
    num_stale = write_or_check(generated(), is_check=is_check)
    num_stale += write_or_check(rendering.rendered_examples(CHART), is_check=is_check)
    if is_check and num_stale:
        sys.stderr.write(f"{num_stale} generated files are not current; repair: make chart-generate\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
