"""A learner and a generator that share a broker and a bucket, and no directory."""

import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from asympo.cli import main
from asympo.common.object_store import ObjectStoreOptions
from asympo.learner.replay.archive_replay import Replay

from tests.integration.learner.conftest import no_learner_outlives_its_test, run_log
from tests.integration.learner.process import LearnerProcess
from tests.integration.learner.test_real_services import GeneratorProcess, additions, trained

__all__ = ["no_learner_outlives_its_test", "run_log"]


@pytest.mark.timeout(400)
def test_learner_that_lost_its_disk_goes_on_from_the_store_and_a_generator_follows(
    broker_url: str, run_name: str, tmp_path: Path, tiny_model: Path, options: ObjectStoreOptions
) -> None:
    store = ("--object-store.url", str(options.url), "--object-store.endpoint", str(options.endpoint))
    flags = (
        *additions(tmp_path / "rows.jsonl", 20),
        *store,
        "--retain",
        "--num-epochs",
        "1",
        "--share-prefixes",
        "never",
        # Five steps at least, however fast the generator is.
        "--max-groups-per-step",
        "4",
    )
    learner = LearnerProcess(
        url=broker_url, run=run_name, root=tmp_path / "learner", model=tiny_model, flags=flags
    ).start()
    generator = GeneratorProcess(url=broker_url, run=run_name, root=tmp_path / "generator", flags=store)
    # A row of step 4 is written after the commit of step 3.
    learner.until(lambda: learner.reached(4))
    learner.end(signal.SIGKILL)
    for kind in ("policy", "train"):
        shutil.rmtree(tmp_path / "learner" / run_name / kind)
    learner.start("--take-over")
    assert learner.wait() == 0, learner.log
    assert generator.wait(60) == 0, generator.log
    assert learner.count("Fetching the training state step-00000003-f0001") == 1
    assert "Reloaded policy" in generator.log
    assert not list((tmp_path / "generator").glob("*/train"))
    once = Counter(f"0-{index}" for index in range(20))
    assert trained(learner) == generator.appended == once

    # From a machine that has neither the learner's files nor a broker.
    reader, out = tmp_path / "reader", tmp_path / "groups.jsonl"
    place = ["--run", run_name, "--checkpoint-root", str(reader), *store]
    assert main(["log", "export", *place, "--archive-only", "--out", str(out)]) == 0
    assert Counter(json.loads(line)["group_id"] for line in out.read_text().splitlines()) == once
    report = Replay(
        checkpoint_root=reader, run=run_name, object_store=options, from_state=None, any_build=False
    ).run()
    assert (report.weights_identical, report.groups) == (True, 20)
    assert min(report.states_compared, report.policies_compared) > 0
