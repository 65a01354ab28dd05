"""A learner and a generator that share a broker and a bucket, and no directory."""

import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from asympo.common.object_store import ObjectStoreOptions

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
        "--num-epochs",
        "1",
        "--share-prefixes",
        "never",
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
