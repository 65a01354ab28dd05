"""`asympo bench rewards` measures the real scoring processes."""

import json
import subprocess
import sys


def test_scoring_costs_little_and_judges_work_at_once() -> None:
    command = [sys.executable, "-m", "asympo.cli", "bench", "rewards", "--groups", "20", "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout)
    assert 0 < report["overhead_milliseconds_per_group"] < 50
    assert report["overhead_milliseconds_per_group"] <= report["overhead_milliseconds_longest"]
    assert 1.0 <= report["judge_seconds_256"] < 64, "256 calls one after the other take 256 s"


def test_groups_below_one_are_refused_in_a_sentence() -> None:
    command = [sys.executable, "-m", "asympo.cli", "bench", "rewards", "--groups", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode != 0
    assert ended.stderr.strip().endswith("--groups is 0: give at least 1")
