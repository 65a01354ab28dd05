"""The rules that were fixed before the runs."""

from dataclasses import replace

import pytest
from asympo.lab.ages import draw_age, oldest_age
from asympo.lab.analysis import (
    Setting,
    collapse_windows,
    has_collapsed,
    moonshot,
    passing_specs,
    row_of,
    summarise,
)
from asympo.lab.cell import CellResult, CellSpec
from asympo.lab.presets import LAPTOP
from asympo.lab.report import headline
from asympo.lab.results import Results
from asympo.lab.study import choose_constants

SPEC = CellSpec(
    arm="asympo", constant=1e-4, staleness=64, kind="fixed", learning_rate=3e-4, seed=0, steps=3,
    groups_per_step=2, group_size=2, evaluate_every=3,
)  # fmt: skip


def cell(final: float | None, **changes: object) -> CellResult:
    start = {"step": 0, "accuracy": 0.3, "response_tokens": 4.0, "kl_to_start": 0.0}
    return CellResult(
        spec=replace(SPEC, **changes),  # type: ignore[arg-type]
        steps=[{"step": 1, "nll_ratio": 2.0}],
        evaluations=[start, {**start, "step": 3, "accuracy": final}],
        final_accuracy=final,
    )


@pytest.mark.parametrize(("final", "expected"), [(0.15, False), (0.149, True), (None, True), (0.9, False)])
def test_collapse_is_below_half_of_the_start_or_not_finite(final: float | None, expected: bool) -> None:
    assert has_collapsed(cell(final)) is expected


def test_collapse_window_needs_more_than_half_of_the_seeds() -> None:
    one = [cell(0.1, seed=0), cell(0.5, seed=1)]
    two = [cell(0.1, seed=seed, learning_rate=6e-4) for seed in (0, 1)]
    rows = [row_of(Setting.of(cells[0]), cells) for cells in (one, two)]
    (window,) = collapse_windows(rows)["asympo"]
    assert window["learning_rate"] == 6e-4
    assert window["collapsed"] == window["seeds"] == 2


def test_cells_that_two_grids_share_count_once() -> None:
    grid = LAPTOP.grids[0]
    shared = [cell(0.4, seed=0), cell(0.5, seed=1)]
    summary = summarise(Results(tuning=[], chosen={}, grids=[(grid, shared), (grid, shared)]))
    assert [row["seeds"] for row in summary["results"]] == [[0, 1]]


def test_constant_is_chosen_by_the_mean_over_learning_rates_and_ties_keep_the_first() -> None:
    def runs(constant: float, finals: list[float]) -> list[CellResult]:
        return [cell(f, constant=constant, learning_rate=(i + 1) * 1e-4) for i, f in enumerate(finals)]

    assert choose_constants([*runs(1e-4, [0.9, 0.1]), *runs(1e-2, [0.6, 0.6])]) == {"asympo": 1e-2}
    assert choose_constants([*runs(1e-4, [0.5]), *runs(1e-2, [0.5])]) == {"asympo": 1e-4}


def test_moonshot_leaves_out_arms_that_read_behaviour_logprobs() -> None:
    cells = [
        [cell(0.6, arm="naive", staleness=0)],
        [cell(0.59, arm="grpo")],
        [cell(0.58, arm="asympo")],
    ]
    found = moonshot([row_of(Setting.of(each[0]), each) for each in cells])
    assert found is not None
    assert found["best_current_policy_only"]["arm"] == "asympo"
    assert found["share"] == pytest.approx(0.58 / 0.6)
    assert not found["has_passed"]
    assert not found["is_reached"]


@pytest.mark.parametrize(("again", "is_reached"), [(None, False), (0.58, False), (0.6, True)])
def test_moonshot_counts_only_when_it_passes_on_fresh_seeds_too(
    again: float | None, is_reached: bool
) -> None:
    cells = [cell(0.6, arm="naive", staleness=0), cell(0.59, arm="spo"), cell(0.5, arm="asympo")]
    grids = [(LAPTOP.grids[0], cells)]
    if again is not None:
        fresh = [cell(0.6, arm="grpo", staleness=0, seed=10), cell(again, arm="spo", seed=10)]
        # Fresh seeds confirm what had passed; they do not let anything else in.
        fresh += [cell(0.9, arm="asympo", seed=10)]
        grids += [(replace(LAPTOP.grids[0], seeds=(10,)), fresh)]
    assert [spec.arm for spec in passing_specs(grids, confirming_seeds=(10,))] == ["spo"]
    summary = summarise(Results(tuning=[], chosen={}, grids=grids), confirming_seeds=(10,))
    assert summary["moonshot"]["has_passed"]
    assert summary["moonshot"]["is_reached"] is is_reached
    assert {seed for row in summary["results"] for seed in row["seeds"]} == {0}


@pytest.mark.parametrize("seeds", [(10, 11), (0, 10)])
def test_fresh_seeds_without_others_beside_them_are_results_like_any(seeds: tuple[int, ...]) -> None:
    grid = replace(LAPTOP.grids[0], seeds=seeds)
    cells = [cell(0.1, seed=seed) for seed in seeds]
    results = Results(tuning=[], chosen={}, grids=[(grid, cells)])
    summary = summarise(results, confirming_seeds=LAPTOP.confirming_seeds)
    (line,) = headline(summary).rows
    assert line[-1] == "2 of 2"
    assert summary["collapse_window"]["asympo"][0]["seeds"] == 2


@pytest.mark.parametrize("kind", ["fixed", "uniform", "long-tailed"])
def test_ages_keep_their_mean_and_their_limit(kind: str) -> None:
    import random

    rng = random.Random(0)
    ages = [draw_age(rng, kind=kind, mean=16) for _ in range(20_000)]  # type: ignore[arg-type]
    assert max(ages) <= oldest_age(kind=kind, mean=16)  # type: ignore[arg-type]
    assert sum(ages) / len(ages) == pytest.approx(16, rel=0.2)
    assert draw_age(rng, kind=kind, mean=0) == 0  # type: ignore[arg-type]
