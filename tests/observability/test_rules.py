"""Alerts and recording rules: valid, and each alert fires when it should and only then."""

import re
from pathlib import Path
from typing import Any

import yaml

from tests.observability.alert_cases import CASES, MINUTES, Changes, healthy
from tests.observability.tools import ROOT, RULES, promtool

RULE_FILES = sorted(RULES.glob("*.yaml"))


def alerts() -> dict[str, dict[str, Any]]:
    groups = [group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def _series(run: str, changes: Changes, without: str = "") -> list[dict[str, str]]:
    """The healthy run with changes, as a run of its own."""
    return [
        {"series": key.replace('run="r"', f'run="{run}"'), "values": values}
        for key, values in (healthy() | changes).items()
        if not without or not key.startswith(without)
    ]


def _expectation(alert: str, run: str, *, is_firing: bool) -> dict[str, Any]:
    return {
        "expr": f'group(ALERTS{{alertname=~"{alert}",run="{run}",alertstate="firing"}})',
        "eval_time": f"{MINUTES - 1}m",
        "exp_samples": [{"labels": "{}", "value": 1}] if is_firing else [],
    }


def test_rule_files_pass_promtool() -> None:
    promtool("check", "rules", "--lint-fatal", *RULE_FILES)


def test_every_alert_has_a_case_and_every_case_an_alert() -> None:
    assert set(CASES) == set(alerts())


def test_each_alert_fires_on_its_fault_and_not_beside_it(tmp_path: Path) -> None:
    # All cases at once, each as a run of its own: quicker, and runs must not disturb each other.
    series, expected = _series("healthy", {}), [_expectation(".*", "healthy", is_firing=False)]
    for alert, case in CASES.items():
        series += _series(f"{alert} fires", case.firing, case.without)
        series += _series(f"{alert} quiet", case.quiet)
        expected.append(_expectation(alert, f"{alert} fires", is_firing=True))
        expected.append(_expectation(alert, f"{alert} quiet", is_firing=False))
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": expected}]
    path = tmp_path / "alerts.yaml"
    path.write_text(
        yaml.safe_dump(
            {"rule_files": [str(file) for file in RULE_FILES], "evaluation_interval": "2m", "tests": tests}
        )
    )
    promtool("test", "rules", path)


def test_each_alert_has_severity_summary_and_a_runbook_that_exists() -> None:
    headings = re.findall(r"^#+ (\w+)$", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE)
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), name
        assert "{{ $labels.run }}" in rule["annotations"]["summary"], name
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{name.lower()}"
        assert name in headings, f"docs/runbooks.md has no section {name}"
