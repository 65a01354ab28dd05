"""Alerts and recording rules: valid, and each alert fires when it should and only then."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.chart.rendering import RELEASE
from tests.observability import record
from tests.observability.alert_cases import (
    CASES,
    MINUTES,
    RELEASE_CASES,
    Changes,
    healthy,
)
from tests.observability.failures import FAILURES, pods
from tests.observability.queries import annotation_queries
from tests.observability.quiet_runs import QUIET_RUNS
from tests.observability.tools import ROOT, RULES, promtool

RECORDED = Path(__file__).with_name("recorded") / "stability.jsonl"
RULE_FILES = sorted(RULES.glob("*.yaml"))


def alerts() -> dict[str, dict[str, Any]]:
    groups = [group for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def _series(run: str, changes: Changes, without: str = "") -> list[dict[str, str]]:
    """The healthy run with changes, as a run of its own."""
    kept = {key: each for key, each in healthy().items() if not without or not key.startswith(without)}
    return _named(run, kept | changes)


def _named(run: str, series: Changes) -> list[dict[str, str]]:
    return [
        {"series": key.replace('run="r"', f'run="{run}"'), "values": values} for key, values in series.items()
    ]


def _expectation(alert: str, run: str, *, is_firing: bool, minutes: int = MINUTES) -> dict[str, Any]:
    return {
        "expr": f'group(ALERTS{{alertname=~"{alert}",run="{run}",alertstate="firing"}})',
        "eval_time": f"{minutes - 1}m",
        "exp_samples": [{"labels": "{}", "value": 1}] if is_firing else [],
    }


def _promtool_test(
    path: Path, tests: list[dict[str, Any]], *, interval: str = "2m", rules: Sequence[Path] = RULE_FILES
) -> None:
    files = [str(file) for file in rules]
    path.write_text(yaml.safe_dump({"rule_files": files, "evaluation_interval": interval, "tests": tests}))
    promtool("test", "rules", path)


def test_rule_files_pass_promtool() -> None:
    promtool("check", "rules", "--lint-fatal", *RULE_FILES)


def test_every_alert_has_a_case_and_every_case_an_alert() -> None:
    assert {*CASES, *RELEASE_CASES} == set(alerts())


def test_each_alert_fires_on_its_fault_and_not_beside_it(tmp_path: Path) -> None:
    # All cases at once, each as a run of its own: quicker, and runs must not disturb each other.
    series, expected = [], []
    for alert, case in CASES.items():
        series += _series(f"{alert} fires", case.firing, case.without)
        series += _series(f"{alert} quiet", case.quiet, case.quiet_without)
        expected.append(_expectation(alert, f"{alert} fires", is_firing=True))
        expected.append(_expectation(alert, f"{alert} quiet", is_firing=False))
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": expected}]
    _promtool_test(tmp_path / "alerts.yaml", tests)


@pytest.mark.parametrize("alert", RELEASE_CASES)
def test_alert_of_a_release_fires_on_its_fault_and_not_beside_it(alert: str, tmp_path: Path) -> None:
    case = RELEASE_CASES[alert]
    tests = [
        {
            "interval": "1m",
            "input_series": _named("r", series),
            "promql_expr_test": [_expectation(alert, "RUN", is_firing=is_firing)],
        }
        for series, is_firing in ((case.firing, True), (case.quiet, False))
    ]
    _promtool_test(tmp_path / "release.yaml", tests)


def test_nothing_fires_at_any_time_of_a_quiet_run(tmp_path: Path) -> None:
    series, expected = [], []
    for run, changes in QUIET_RUNS.items():
        series += _named(run, changes)
        fired = f'ALERTS{{run="{run}",alertstate="firing"}}'
        expected.append(
            {
                "expr": f"max by (alertname) (max_over_time({fired}[{MINUTES}m]))",
                "eval_time": f"{MINUTES - 1}m",
                "exp_samples": [],
            }
        )
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": expected}]
    _promtool_test(tmp_path / "quiet.yaml", tests)


def test_learning_alerts_on_recorded_runs(tmp_path: Path) -> None:
    """Rows of cells of `asympo lab stability --preset laptop`, a step a minute."""
    rows = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    series, expected = [], []
    for row in rows:
        run, labels = row["cell"], f'{{namespace="n",run="{row["cell"]}"'
        for name, column in (
            (f"asympo_learner_reward{labels}}}", "reward"),
            (f'asympo_learner_nll_nats{labels},sign="positive"}}', "nll_positive"),
            (f"asympo_learner_nll_ratio{labels}}}", "nll_ratio"),
        ):
            values = " ".join("_" if value is None else str(value) for value in row[column])
            series.append({"series": name, "values": values})
        fired = f'max_over_time(ALERTS{{run="{run}",alertstate="firing",severity="%s"}}[150m])'
        for severity in ("critical", "warning"):
            is_firing = row["has_collapsed"] and severity == "critical"
            found = {"labels": '{alertname="AsympoCollapse"}', "value": 1}
            # Of runs that collapse most, not all, are seen to come.
            if severity == "critical" or not row["has_collapsed"]:
                expected.append(
                    {
                        "expr": f"max by (alertname) ({fired % severity})",
                        "eval_time": "149m",
                        "exp_samples": [found] if is_firing else [],
                    }
                )
    _promtool_test(
        tmp_path / "recorded.yaml",
        [{"interval": "1m", "input_series": series, "promql_expr_test": expected}],
    )


MARKED = {
    # A learner that is started again takes its own run over.
    "Take-over": {"two learners"},
    "Generator falls back: a reload failed": {"reloads change nothing"},
    "Learner falls back to a slower way": set[str](),
}
"""Marks on the dashboards, and the recordings that have them."""


def test_on_a_recorded_failure_exactly_its_alerts_fire_and_its_marks_are_set(tmp_path: Path) -> None:
    recordings = {each["name"]: each for each in record.recorded()}
    assert recordings.keys() == FAILURES.keys(), "python -m tests.observability.record NAME"
    marks = {where.partition(": ")[2]: text for where, text in annotation_queries()}
    tests = []
    for name, failure in FAILURES.items():
        series = record.played(recordings[name]["series"], failure.pace)
        seconds = failure.pace * max(_num_samples(each["values"]) for each in series)
        expected = {_fired(seconds): [f'{{alertname="{alert}"}}' for alert in sorted(failure.alerts)]}
        for mark, marked in MARKED.items():
            expected[f"group(max_over_time(({marks[mark]})[{seconds}s:1m]))"] = (
                ["{}"] if name in marked else []
            )
        told = [
            {
                "expr": expression,
                "eval_time": f"{seconds}s",
                "exp_samples": [{"labels": labels, "value": 1} for labels in found],
            }
            for expression, found in expected.items()
        ]
        if healthy := failure.pace * recordings[name].get("healthy_seconds", 0):
            told.append({"expr": _fired(healthy), "eval_time": f"{healthy}s", "exp_samples": []})
        interval = f"{failure.pace}s"
        tests.append({"name": name, "interval": interval, "input_series": series, "promql_expr_test": told})
    _promtool_test(tmp_path / "failures.yaml", tests, interval="1m", rules=_of_a_release(tmp_path))


def _fired(seconds: int) -> str:
    return f'max by (alertname) (max_over_time(ALERTS{{alertstate="firing"}}[{seconds}s]))'


def _of_a_release(directory: Path) -> list[Path]:
    """The rules with the names of the release whose pods were recorded, as the chart puts them."""
    for path in RULE_FILES:
        text = path.read_text().replace("NAMESPACE", pods.NAMESPACE).replace("FULLNAME", RELEASE)
        (directory / path.name).write_text(text)
    return [directory / path.name for path in RULE_FILES]


NOT_RECORDED = {"AsympoCollapse", "AsympoNllRising"}
"""Their series are those of the stability study: `test_learning_alerts_on_recorded_runs`."""


def test_every_other_alert_has_fired_on_a_recorded_failure_of_its_kind() -> None:
    recorded = {alert for failure in FAILURES.values() for alert in failure.alerts}
    assert recorded.isdisjoint(NOT_RECORDED)
    assert recorded | NOT_RECORDED == set(alerts())


def _num_samples(values: str) -> int:
    return sum(1 + int(word.partition("x")[2] or 0) for word in values.split())


def test_each_alert_has_severity_summary_and_a_runbook_that_exists() -> None:
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(alerts()), "docs/runbooks.md: one section for each alert"
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("info", "warning", "critical"), name
        assert "{{ $labels.run }}" in rule["annotations"]["summary"], name
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks.md#{name.lower()}"
