"""`asympo bench gateway` with the real service: what is kept is kept, whatever the machine's speed."""

import json
import subprocess
import sys


def test_bench_gateway_loses_nothing_and_falls_over_nothing() -> None:
    command = [sys.executable, "-m", "asympo.cli", "bench", "gateway", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["sessions_lost"], report["malformed_crashes"]) == (0, 0)
    for name in ("groups_per_second", "groups_per_second_token_ids", "p99_milliseconds_half_load"):
        assert report[name] > 0
    assert report["agent_overhead_milliseconds_p50"] < 30, "less than what a delayed acknowledgement costs"
    sessions = report["sessions"]
    assert sessions["groups_appended"] * 8 == sessions["num_sessions"] == 32
    assert sessions["groups_appended_twice"] == 0
    assert sessions["generators_killed"] >= 1
    assert report["malformed"]["answers"]["afterwards appended"] == 2
