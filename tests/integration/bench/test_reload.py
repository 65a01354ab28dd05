"""`bench reload` on the real engine, once around: a tied head and experts, each with all of its faults."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from asympo.bench.models import write_tiny_family
from asympo.bench.reload.swaps import BREAKING_FAULT, FAULTS

from tests.conftest import skip_without

skip_without("vllm")


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_reload_bench_counts_swaps_faults_and_losses_and_prints_one_object(tmp_path: Path) -> None:
    model = write_tiny_family("tied-llama", tmp_path / "tied-llama")
    command = [sys.executable, "-m", "asympo.cli", "bench", "reload", "--json"]
    flags = ["--swaps", "2", "--requests", "4", "--tokens", "32", "--family", "mixtral"]
    flags += ["--model", str(model), "--publish-steps", "0"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert (
        report["false_alarms"]
        == report["not_proved"]
        == report["requests_lost"]
        == report["tokens_lost"]
        == 0
    )
    assert report["faults_injected"] == report["faults_caught"] == len(report["faults"])
    assert [fault["fault"] for fault in report["faults"]] == [
        *FAULTS["tied-llama"],
        *FAULTS["mixtral"],
        BREAKING_FAULT,
    ]
    assert "untouched" in report["faults"][-1]["found"]
    assert report["swaps"] > 2
    assert report["requests"] >= 4
    assert 0 < report["stall_ratio_to_restart"] < report["stall_ratio_to_load"]
    assert 0 < report["readback_seconds"]["median"] < report["pause_seconds"]["max"]
