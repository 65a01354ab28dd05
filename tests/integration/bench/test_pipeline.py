"""Real services under the pipeline benchmark: one side after the other, from the log they share."""

from pathlib import Path

import pytest
from asympo.bench.pipeline_run import Load, pipeline_run
from asympo.testing.tiny_model import write_tiny_model


@pytest.mark.timeout(180)
def test_paused_learner_lets_the_log_fill_and_then_trains_it_without_a_generator(tmp_path: Path) -> None:
    load = Load(
        model=write_tiny_model(tmp_path / "model", hidden_size=32, num_layers=1),
        # So many that no group is without signal: one more would have to take its place.
        group_size=16, groups_per_step=2, mean_tokens=8, sigma=0.5, max_tokens=32, max_num_seqs=16,
        reload_seconds=0.0, token_budget=1024,
    )  # fmt: skip
    with pipeline_run(
        load, name="p", directory=tmp_path / "runs", max_staleness=2, total_steps=2,
        seconds_per_token=0.001, is_paused=True,
    ) as run:  # fmt: skip
        run.wait(lambda: run.stats().appended >= 4, what="a full log")
        assert run.rows == []
        run.stop_generators()
        appended = run.stats().appended
        run.resume_learner()
        run.wait(lambda: len(run.rows) >= 2, what="two steps")
        assert run.stats().appended == appended
        assert [row["step"] for row in run.rows] == [1, 2]
        assert run.rows[0]["queue_staleness_max"] == 0
