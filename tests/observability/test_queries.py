"""The golden list is current, and every shipped query asks for series and labels on it."""

import json
import os
import subprocess

import pytest

from tests.golden import metrics as golden
from tests.observability.queries import (
    annotation_queries,
    grouping_labels,
    known_labels,
    panel_queries,
    rules,
    selectors,
)
from tests.observability.tools import DASHBOARDS, ROOT, promql


def test_golden_metrics_are_those_of_the_services() -> None:
    assert golden.PATH.read_text() == golden.render(), "regenerate: .venv/bin/python -m tests.golden.metrics"


@pytest.mark.parametrize("kind", ["panels", "rules"])
def test_queries_parse_and_ask_for_what_exists(kind: str) -> None:
    parser, known = promql(), known_labels()
    named = (
        panel_queries() + annotation_queries()
        if kind == "panels"
        else [(str(rule), rule["expr"]) for rule in rules()]
    )
    assert len(named) > 40
    for where, expression in named:
        tree = parser.parse(expression)
        found = list(selectors(tree))
        assert found, where
        possible: set[str] = set()
        for name, labels in found:
            assert name in known, f"{where}: no service gives {name}"
            assert labels <= known[name], f"{where}: {name} has no label {labels - known[name]}"
            possible |= known[name]
        kept = set(grouping_labels(tree))
        assert kept <= possible, f"{where}: nothing to group by {kept - possible}"


def test_every_scraped_series_of_the_services_is_shown_or_alerted_on() -> None:
    parser = promql()
    expressions = [expression for _, expression in panel_queries()] + [rule["expr"] for rule in rules()]
    asked = {name for expression in expressions for name, _ in selectors(parser.parse(expression))}
    bases = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in asked}
    unseen = {
        base
        for line in golden.lines()
        if (base := line.split(" ")[0].removesuffix("_bucket").removesuffix("_sum").removesuffix("_count"))
        not in bases
    }
    # Shown in the status page only, or alike to one that is shown.
    assert unseen <= {
        "asympo_generator_held_seconds",
        "asympo_generator_requests_lost_total",
        "asympo_learner_tokens_per_second",
        "asympo_learner_wait_ratio",
        "asympo_learner_wait_seconds",
    }


def test_panels_link_to_the_runbook_of_each_alert() -> None:
    sections = (ROOT / "docs/runbooks.md").read_text()
    linked = set()
    for path in DASHBOARDS.glob("*.json"):
        for panel in json.loads(path.read_text())["panels"]:
            for link in panel.get("links", []):
                alert = link["title"].removeprefix("Runbook: ")
                assert link["url"] == f"docs/runbooks.md#{alert.lower()}"
                assert f"### {alert}\n" in sections
                linked.add(alert)
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert linked <= alerts
    # What is about processes and not about a curve.
    assert alerts - linked == {
        "AsympoCertificateEnds",
        "AsympoCorruptPolicies",
        "AsympoLearnerMissing",
        "AsympoLearnerNotReady",
        "AsympoLearnerPaused",
        "AsympoTrackerFailing",
        "AsympoVersionsDiffer",
    }


def test_dashboards_have_unique_panels_and_names() -> None:
    boards = [json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))]
    assert [board["uid"] for board in boards] == ["asympo-fleet", "asympo-rollout-log", "asympo-training"]
    for board in boards:
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))


def test_dashboards_are_what_the_generator_writes() -> None:
    if not (ROOT / ".cache/grafana-tools").exists() and not os.environ.get("CI"):
        pytest.skip("the dashboard tools are not installed: deploy/grafana/dashboards.sh")
    command = [str(ROOT / "deploy/grafana/dashboards.sh"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
