"""`asympo run` from end to end with every real part but the engine, which is the simulated one."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from asympo.testing.run_process import RunProcess

from tests.integration.run.conftest import last_step

SUMMARY_KEYS = {
    "held_out_accuracy_before",
    "held_out_accuracy_after",
    "steps",
    "wall_seconds",
    "reloads",
    "probe_failures",
    "requests_lost",
    "groups_trained_twice",
    "peak_rss_bytes_total",
}


@pytest.mark.timeout(400)
def test_run_survives_an_interrupt_and_kills_and_trains_nothing_twice(
    start: Callable[..., RunProcess], tmp_path: Path
) -> None:
    directory = tmp_path / "runs" / "tiny"
    first = start()
    first.until(lambda: last_step(directory) >= 2, seconds=120)
    assert first.end(signal.SIGINT, seconds=120) == 130, first.log
    assert "start it again the same way" in first.log
    reached = json.loads((directory / "run.json").read_text())["step"]
    assert reached >= 2

    # From here on in turns: whoever is killed must not keep the other waiting.
    second = start(f"--learner.total-steps={reached + 12}", "--run.gpu-sharing=sleep")
    second.until(lambda: last_step(directory) > reached + 1, seconds=120)
    for name in ("learner.toml", "generator-0.toml"):
        [service] = second.services(name)
        service.kill()
    assert second.wait(240) == 0, second.log
    assert "learner was killed by SIGKILL; starting it again" in second.log

    summary = json.loads((directory / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["steps"] == reached + 12
    assert summary["groups_trained_twice"] == 0
    assert summary["restarts"] >= 2
    assert summary["starts"] == 2
    assert summary["held_out_policy_step_after"] == reached + 12
    assert summary["peak_rss_bytes_total"] > 2**28
    assert 0 < summary["publish_bytes_median"] < 0.5 * summary["publish_bytes_max"], "most are differences"
    assert summary["stall_seconds_per_reload"] > 0
    assert (directory / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])
    ]


@pytest.mark.timeout(300)
def test_run_whose_last_policy_fails_its_proof_says_so_in_its_last_lines(
    start: Callable[..., RunProcess], tmp_path: Path
) -> None:
    run = start(
        "--learner.total-steps=4",
        "--learner.publish-every=2",
        "--generator.simulated.faults.stale-steps=[4]",
        "--run.targets.min-accuracy=0.0",
    )
    assert run.wait(200) == 1, run.log
    directory = tmp_path / "runs" / "tiny"
    first = json.loads((directory / "held_out_before.json").read_text())
    assert first["policy_step"] == 0, "the learner may step meanwhile, not publish"
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["last_policy_step"] == 4
    assert summary["last_policy_served"] is False
    assert summary["held_out_policy_step_after"] == 2
    assert summary["last_policy_wait_seconds"] < 60, "nobody waits for a policy that is marked bad"
    told = [line for line in run.log.splitlines() if line.startswith("went wrong: ")]
    assert run.log.splitlines()[-len(told) :] == told
    assert told[0].startswith("went wrong: 1 of ")
    assert told[-1].startswith("went wrong: the last policy (step 4) was not served")
