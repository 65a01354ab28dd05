"""`bench reload` on the real engine, once around."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("vllm")


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_reload_bench_counts_swaps_faults_and_losses_and_prints_one_object() -> None:
    command = [sys.executable, "-m", "asympo.cli", "bench", "reload", "--json"]
    flags = ["--swaps", "2", "--requests", "4", "--tokens", "32", "--family", "mixtral"]
    flags += ["--publish-steps", "0"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["false_alarms"] == report["requests_lost"] == report["tokens_lost"] == 0
    assert report["faults_injected"] == report["faults_caught"] == len(report["faults"]) > 10
    assert report["swaps"] > 2
    assert report["requests"] >= 4
    assert 0 < report["stall_ratio_to_restart"] < report["stall_ratio_to_load"]
    assert 0 < report["readback_seconds"]["median"] < report["pause_seconds"]["max"]
