"""A learner process whose storage fills up while it runs: it says so, waits, and goes on."""

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from asympo.chaos.shim import Control, build_shim
from asympo.common.checkpoints.opening import open_policies
from asympo.common.jsonl import read_jsonl
from asympo.common.rollout_log import RunLog

from tests.conftest import require
from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.producer import Producer


def failures(learner: LearnerProcess, what: str) -> int:
    found = re.search(rf"asympo_learner_{what}_failures_total (\d+)", learner.get("/metrics") or "")
    return int(found[1]) if found else 0


def failed_twice(learner: LearnerProcess, what: str) -> Callable[[], bool]:
    before = failures(learner, what)
    return lambda: failures(learner, what) >= before + 2


def commits_wait_for_rows(learner: LearnerProcess, control: Control, run_log: RunLog, rows: Path) -> None:
    """Nothing is committed whose row is not on storage."""
    control.fill_disk(rows)
    learner.until(failed_twice(learner, "save"))
    commit = run_log.commits.last()
    assert commit is not None
    committed = commit.sequence
    assert committed <= list(read_jsonl(rows))[-1]["last_sequence"]
    control.free_disk()
    learner.until(lambda: (last := run_log.commits.last()) is not None and last.sequence > committed)


@pytest.mark.timeout(200)
def test_full_disk_is_told_and_tried_again_while_the_old_policy_serves(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path, run_log: RunLog
) -> None:
    library = build_shim(tmp_path)
    require(library is not None, "a C compiler")
    assert library is not None
    control = Control(library=library, path=tmp_path / "control")
    root = tmp_path / "root"
    learner = LearnerProcess(
        url=broker_url,
        run=run_name,
        root=root,
        model=tiny_model,
        flags=("--publish-retry-seconds", "0.5", "--share-prefixes", "never"),
        environment=control.environment,
    )
    with Producer(url=broker_url, run=run_name) as producer:
        learner.start()
        learner.until(lambda: learner.reached(4))

        control.fill_disk(root / run_name)
        learner.until(failed_twice(learner, "publish"))
        serving, kept = run_log.policies.latest(), open_policies(root, run_name).newest(with_digests=True)
        assert serving is not None
        assert kept is not None
        assert (kept.step, kept.digest) == (serving.step, serving.digest), "what is announced is whole"
        # Nothing is freed that no policy shows: the run stands still within its capacity.
        stopped_at = producer.num_appended
        learner.until(failed_twice(learner, "publish"))
        assert producer.num_appended == stopped_at
        assert learner.get("/livez") == learner.get("/readyz") == "ok"
        control.free_disk()
        learner.until(lambda: (run_log.policies.latest() or serving).step > serving.step + 3)

        control.fill_disk(root / run_name / "train")
        learner.until(failed_twice(learner, "save"))
        commit = run_log.commits.last()
        assert commit is not None
        committed = commit.sequence
        assert (root / run_name / "train" / commit.state_name / "manifest.json").exists()
        control.free_disk()
        learner.until(lambda: (last := run_log.commits.last()) is not None and last.sequence > committed + 9)

        commits_wait_for_rows(learner, control, run_log, root / run_name / "trained.jsonl")
        assert learner.end(signal.SIGTERM) == 0, learner.log
    assert control.num_refused_writes > 0
    assert learner.count("the next attempt is in") >= 6
    commit = run_log.commits.last()
    assert commit is not None
    trained = [
        group_id for row in read_jsonl(root / run_name / "trained.jsonl") for group_id in row["group_ids"]
    ]
    assert len(trained) == len(set(trained)) == commit.sequence, "none lost, none twice"
