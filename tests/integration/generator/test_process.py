"""Real generator processes with the simulated engine: killed, stopped, started wrongly."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asympo.common.jsonl import read_jsonl

from tests.integration.generator.harness import LearnerSide
from tests.integration.generator.processes import COMMAND, Processes, until

ENDLESS = {"length_mean_tokens": 5000.0}
"""Responses of 100 seconds."""


@pytest.fixture
def learner(make_learner: Callable[..., LearnerSide]) -> LearnerSide:
    learner = make_learner(
        lease_seconds=5.0, groups_per_step=6, max_groups_per_step=6, sampling={"max_tokens": 10_000}
    )
    learner.create().publish(0, nll=2.0)
    return learner


@pytest.fixture
def processes(learner: LearnerSide, tmp_path: Path) -> Iterator[Processes]:
    made = Processes(learner=learner, directory=tmp_path)
    yield made
    made.close()


def test_killed_generator_loses_its_leases_and_another_one_answers(
    learner: LearnerSide, processes: Processes, tmp_path: Path
) -> None:
    # Every prompt of the capacity is leased by one that will never answer.
    doomed = processes.start("doomed", max_groups_in_flight=6, simulated=ENDLESS)
    until(lambda: learner.run_log.stats.read().leases == 6)
    assert doomed.end(signal.SIGKILL) == -signal.SIGKILL
    journal = tmp_path / "appends.jsonl"
    processes.start("heir", append_journal=journal)
    until(lambda: len(learner.groups()) == 6)
    stats = learner.run_log.stats.read()
    assert stats.lease_expiries == 6
    assert len({group.group_id for group in learner.groups()}) == 6
    assert stats.prompt_failures == 0
    until(lambda: len(list(read_jsonl(journal))) == 6)
    in_log = {
        (entry.sequence, entry.group_id, hashlib.sha256(entry.payload).hexdigest())
        for entry in learner.run_log.reader.iter_entries()
    }
    rows = list(read_jsonl(journal))
    assert {(row["sequence"], row["group_id"], row["payload_sha256"]) for row in rows} == in_log
    assert {(row["outcome"], row["producer"]) for row in rows} == {("appended", "heir")}


def test_stopped_generator_finishes_what_it_holds_and_exits_0(
    learner: LearnerSide, processes: Processes
) -> None:
    # A lease that was granted and not heard of yet is handed back: wait until the generator holds both.
    process = processes.start("one", drain_seconds=60.0, simulated={"seconds_per_token": 0.2})
    until(lambda: [g for g in learner.run_log.presence.generators() if g["groups_in_flight"] == 2])
    assert process.end(signal.SIGTERM) == 0, process.log
    stats = learner.run_log.stats.read()
    assert (stats.leases, stats.appended, stats.reissue) == (0, 2, 0)
    assert learner.run_log.presence.generators() == []


def test_second_signal_ends_the_generator_at_once(learner: LearnerSide, processes: Processes) -> None:
    process = processes.start("one", drain_seconds=60.0, simulated=ENDLESS)
    until(lambda: learner.run_log.stats.read().leases == 2)
    process.send(signal.SIGTERM)
    until(lambda: '"Draining' in process.log)
    assert process.end(signal.SIGTERM) == 128 + signal.SIGTERM


def test_stale_engine_is_noticed_and_the_previous_policy_served(
    learner: LearnerSide, processes: Processes
) -> None:
    processes.start("one", simulated={"faults": {"stale_steps": [1]}})
    until(lambda: learner.run_log.stats.read().leases == 2)
    learner.publish(1, nll=3.0)
    [bad] = until(learner.run_log.policies.bad)
    assert (bad.step, bad.holder) == (1, "one")
    [present] = until(lambda: [g for g in learner.run_log.presence.generators() if g["probe_failures"] == 1])
    assert present["policy_step"] == 0
    learner.publish(2, nll=4.0)
    until(lambda: [g for g in learner.run_log.presence.generators() if g["policy_step"] == 2])


def test_raising_reload_ends_the_process_and_gives_the_leases_back(
    learner: LearnerSide, processes: Processes
) -> None:
    process = processes.start("one", simulated={"faults": {"raising_steps": [1]}} | ENDLESS)
    until(lambda: learner.run_log.stats.read().leases == 2)
    learner.publish(1, nll=3.0)
    assert process.wait(60) == 7, process.log
    assert "asympo: The engine is broken" in process.log.splitlines()[-1]
    assert learner.run_log.stats.read().leases == 0
    assert learner.run_log.policies.bad() == []


def test_other_task_is_refused_in_one_sentence(
    make_learner: Callable[..., LearnerSide], tmp_path: Path
) -> None:
    learner = make_learner(task_digest="f" * 64)
    learner.create()
    process = Processes(learner=learner, directory=tmp_path).start("one")
    assert process.wait(60) == 2
    last = process.log.splitlines()[-1]
    assert re.fullmatch(r"asympo: run '.*' was created with task_digest ffffffffffff…, here it is .*", last)


def test_help_and_check_config_answer_without_heavy_imports(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--check-config", "--run", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert 'run = "x"' in done.stdout
    code = (
        "import sys, asympo.generator.settings; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'vllm', 'redis', 'grpc', 'fastapi')))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
