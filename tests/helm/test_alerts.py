"""Alerts as the values change them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.chart import rendering
from tests.helm.conftest import CHART
from tests.helm.test_cases import CASES

ON = ["model.path=/checkpoints/models/any", "monitoring.prometheusRule.enabled=true"]
ALERTS = "monitoring.prometheusRule.alerts"


def _alerts(sets: Sequence[str] = (), **options: Any) -> dict[str, dict[str, Any]]:
    result = rendering.template(CHART, sets=[*ON, *sets], **options)
    assert result.returncode == 0, result.stderr
    rules = [
        rule
        for each in rendering.objects(result.stdout)
        if each["kind"] == "PrometheusRule"
        for group in each["spec"]["groups"]
        for rule in group["rules"]
    ]
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def test_values_change_one_alert_and_leave_the_others() -> None:
    before = _alerts()
    after = _alerts(
        [
            f"{ALERTS}.AsympoStorageLow.threshold=0.25",
            f"{ALERTS}.AsympoStorageLow.for=1h",
            f"{ALERTS}.AsympoTruncated.enabled=false",
            f"{ALERTS}.AsympoNoSignal.severity=critical",
        ]
    )
    assert before.keys() - after.keys() == {"AsympoTruncated"}
    storage = after["AsympoStorageLow"]
    assert storage["expr"].endswith("< 0.25")
    assert storage["for"] == "1h"
    assert after["AsympoNoSignal"]["labels"] == {"severity": "critical"}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"AsympoStorageLow", "AsympoNoSignal"}
    assert not any("threshold" in rule["expr"] for rule in before.values())


def test_runbooks_are_where_the_values_say() -> None:
    where = "https://wiki.example/runbooks"
    for name, rule in _alerts([f"monitoring.prometheusRule.runbooks={where}"]).items():
        assert rule["annotations"]["runbook_url"] == f"{where}#{name.lower()}"
    sets = [*ON, "monitoring.dashboards.enabled=true", f"monitoring.prometheusRule.runbooks={where}"]
    boards = [
        json.loads(text)
        for each in rendering.objects(rendering.template(CHART, sets=sets).stdout)
        for key, text in each.get("data", {}).items()
        if key.endswith(".json") and "dashboard" in each["metadata"]["name"]
    ]
    links = [link["url"] for board in boards for panel in board["panels"] for link in panel.get("links", [])]
    assert len(boards) == 3
    assert links
    assert all(link.startswith(f"{where}#asympo") for link in links)


def test_alerts_of_a_release_name_it_and_come_alone_beside_another() -> None:
    alone = _alerts(
        ["monitoring.prometheusRule.scope=release"], more=["--set-string=run=20261128"], release="r7"
    )
    assert set(alone) == {"AsympoLearnerNotReady", "AsympoCrashLoop", "AsympoBrokerVolumeLow"}
    for rule in alone.values():
        assert 'namespace="training"' in rule["expr"]
        assert "r7-asympo-" in rule["expr"]
        assert rule["labels"]["run"] == "20261128"
        assert not any(word in str(rule) for word in ("NAMESPACE", "FULLNAME", "RUN"))


def test_crash_loop_is_told_of_every_workload(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text((CASES / "everything.yaml").read_text().partition("\n---\n")[0])
    objects = rendering.objects(rendering.template(CHART, values=[values]).stdout)
    workloads = [
        each["metadata"]["name"] for each in objects if each["kind"] in ("Deployment", "StatefulSet")
    ]
    rules = next(each for each in objects if "AsympoCrashLoop" in str(each))
    patterns = re.findall(r'pod=~\"([^"]+)\"', json.dumps(rules).replace('\\"', '"'))
    assert len(workloads) == 6
    assert len(patterns) == 2
    assert all(re.fullmatch(pattern, f"{name}-0") for pattern in patterns for name in workloads)


@pytest.mark.parametrize(
    "value",
    ["AsympoLearnerStarvd.enabled=true", "AsympoDeadLetters.threshold=3", "AsympoStorageLow.for=5 minutes"],
)
def test_what_no_alert_knows_is_refused(value: str) -> None:
    result = rendering.template(CHART, sets=[*ON, f"{ALERTS}.{value}"])
    assert result.returncode != 0
    assert value.split(".")[0] in result.stderr
