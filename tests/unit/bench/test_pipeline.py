"""What the benchmark makes of rows."""

from pathlib import Path
from typing import Any

import pytest
from asympo.bench import command
from asympo.bench.pipeline import Saturated, describe, seconds_of_groups
from asympo.bench.pipeline_run import Load
from asympo.common.errors import BadSetting


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


LOAD = Load(
    model=Path("model"), group_size=2, groups_per_step=4, mean_tokens=8, sigma=1, max_tokens=9,
    max_num_seqs=4, reload_seconds=0, token_budget=64,
)  # fmt: skip
ALONE = Saturated(generator=1.5, learner=1.0)


def test_describe_leaves_the_warm_up_out_and_counts_what_was_thrown_away() -> None:
    rows = [row(step, wait=2.0, staleness=0) for step in (1, 2, 3)]
    rows += [row(step, wait=0.5, staleness=step % 2) for step in (4, 5, 6, 7)]
    told = describe(rows, 3, alone=ALONE, load=LOAD)
    assert told["step_seconds"] == pytest.approx(2.0)
    assert told["learner_wait_ratio"] == pytest.approx(0.25)
    assert told["generator_wait_ratio"] == pytest.approx(0.25)
    assert told["tokens_discarded"] == 75
    assert told["steps_by_queue_staleness_max"] == {"0": 2, "1": 2}
    assert told["generation_staleness_mean"] is None


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--steps=3", "--steps: needs a whole number of at least 4, not 3"),
        ("--saturated-steps=1", "--saturated-steps: needs a whole number of at least 2, not 1"),
        ("--groups-per-step=0", "--groups-per-step: needs a whole number of at least 1, not 0"),
        ("--mean-tokens=nan", "--mean-tokens: needs a number of at least 1, not nan"),
        ("--seconds-per-token=0", "--seconds-per-token: needs a number of at least 1e-06, not 0"),
    ],
)
def test_too_little_to_measure_is_refused_before_anything_starts(flag: str, said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        command.main(["pipeline", flag])


def test_fewest_steps_that_are_accepted_can_be_described() -> None:
    rows = [row(step, wait=0.5, staleness=0) for step in (1, 2, 3, 4)]
    assert describe(rows, 0, alone=ALONE, load=LOAD)["step_seconds"] == pytest.approx(2.0)


def test_engine_that_filled_its_log_between_two_looks_is_not_measured() -> None:
    assert seconds_of_groups(3.0, 6) == 0.5
    for seconds, num_groups in ((0.01, 0), (0.0, 4)):
        with pytest.raises(BadSetting, match=rf"gave {num_groups} groups .* more --saturated-steps"):
            seconds_of_groups(seconds, num_groups)
