"""What the benchmark makes of rows."""

from pathlib import Path
from typing import Any

import pytest
from asympo.bench.pipeline import Saturated, describe
from asympo.bench.pipeline_run import Load


def row(step: int, *, wait: float, staleness: int) -> dict[str, Any]:
    return {
        "step": step,
        "wall_seconds": 10.0 + 2.0 * step,
        "wait_seconds": wait,
        "busy_seconds": 2.0 - wait,
        "publish_seconds": 0.1,
        "tokens_trained": 100,
        "groups": 4,
        "queue_staleness_mean": float(staleness),
        "queue_staleness_max": staleness,
        "generation_staleness_mean": None,
    }


def test_describe_leaves_the_warm_up_out_and_counts_what_was_thrown_away(tmp_path: Path) -> None:
    rows = [row(step, wait=2.0, staleness=0) for step in (1, 2, 3)]
    rows += [row(step, wait=0.5, staleness=step % 2) for step in (4, 5, 6, 7)]
    load = Load(
        model=tmp_path, group_size=2, groups_per_step=4, mean_tokens=8, sigma=1, max_tokens=9,
        max_num_seqs=4, reload_seconds=0, token_budget=64,
    )  # fmt: skip
    told = describe(rows, 3, alone=Saturated(generator=1.5, learner=1.0), load=load)
    assert told["step_seconds"] == pytest.approx(2.0)
    assert told["learner_wait_ratio"] == pytest.approx(0.25)
    assert told["generator_wait_ratio"] == pytest.approx(0.25)
    assert told["tokens_discarded"] == 75
    assert told["steps_by_queue_staleness_max"] == {"0": 2, "1": 2}
    assert told["generation_staleness_mean"] is None
