"""docs/performance.md and docs/models.md show what the benchmarks wrote, and nothing else."""

import json
import re
from typing import Any

import pytest
from asympo.bench import tables
from asympo.bench.tables import PAGES, ROOT, TABLES, learner_table, peers_table, rendered


def test_tables_of_the_page_are_those_of_the_committed_results() -> None:
    pages = [page.read_text() for page in PAGES]
    for name in TABLES:
        assert sum(f"<!-- table: {name} -->\n\n|" in page for page in pages) == 1
    assert [rendered(page) for page in pages] == pages, "repair: .venv/bin/python -m asympo.bench.tables"


def results_of(name: str) -> dict[str, Any]:
    """Of both data types."""
    found: dict[str, Any] = json.loads((ROOT / f"benchmarks/{name}.json").read_text())
    return found


def test_front_page_shows_trl_on_whole_batches_and_the_demo_as_it_is() -> None:
    page = (ROOT / "README.md").read_text()
    peers = [results_of("peers/results"), results_of("peers/results-bf16")]
    faster = [ratio for each in peers for ratio in each["speedup_vs_trl"].values()]
    memory = [ratio for each in peers for ratio in each["memory_ratio_vs_trl"].values()]
    assert (
        f"**{min(faster):.1f} to {max(faster):.1f} times** as fast in {100 * min(memory):.0f} to "
        f"{max(memory):.0%}".replace("%", " % of the memory")
    ) in page
    row = r"\| bfloat16 \| nothing \| 0 \| (\S+), \*\*(\S+)\*\* \((\S+) to (\S+)\) \| \d+ s \| (\d+):(\d+) \|"
    found = re.search(row, PAGES[0].read_text())
    assert found is not None
    before, after, low, high = found.groups()[:4]
    assert f"in {found[5]} min {found[6]} s | held-out accuracy from {before} to **{after}**" in page
    assert f"interval {low} to {high}" in page


def test_prose_about_the_learner_has_the_figures_of_its_tables() -> None:
    page = " ".join(PAGES[0].read_text().split())
    for learner, peers in (("learner", "peers/results"), ("learner-bf16", "peers/results-bf16")):
        shapes = results_of(peers)["shapes"]
        for shape, speed in results_of(learner)["tokens_per_second"].items():
            beside = shapes[shape]["arms"]["asympo"]["tokens_per_second"]
            assert f" {speed:,.0f} against {beside:,.0f}" in page
    shares = [
        share
        for learner in ("learner", "learner-bf16")
        for share in results_of(learner)["matmul_peak_share"].values()
    ]
    assert f"reaches {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the speed" in page
    gains = [
        [
            results_of(name)["gain"]["40/16/8x8"][part]
            for part in ("chunked_head", "fused_optimizer", "fused_layers")
        ]
        for name in ("learner", "learner-bf16")
    ]
    for each, words in zip(
        gains, ("The {} to {} in the first row", "same three are {} to {} in"), strict=True
    ):
        assert words.format(f"{min(each):.2f}", f"{max(each):.2f}") in page


def test_results_have_the_ratios_by_shape() -> None:
    results = json.loads((ROOT / "benchmarks/peers/results.json").read_text())
    for key in ("speedup_vs_trl", "memory_ratio_vs_trl"):
        # Where TRL's whole batch did not fit into memory, TRL by group stands in.
        assert set(results[key]) | set(results[f"{key}_by_group"]) == set(results["shapes"])
        assert all(value > 0 for value in results[key].values())


def test_peers_table_has_a_row_for_every_learner_of_every_shape() -> None:
    arm = {
        "tokens_per_second": 100.0,
        "seconds": 2.0,
        "seconds_without_optimizer": 1.5,
        "cpu_seconds": 3.0,
        "peak_memory_bytes": 4e9,
        "turns": [{"load_average": 2.0}],
    }
    results = {
        "machine": {"processor": "P", "cores": 2, "threads": 2},
        "libraries": {"torch": "2"},
        "rounds": 2,
        "steps_per_round": 1,
        "started_at": "2026-01-02T03:04:05",
        "shapes": {
            "1/2/3x8": {
                "arms": {"asympo": arm, "trl": arm},
                "speedup": {"trl": 5},
                "memory_ratio": {"trl": 0.25},
                "out_of_memory": ["verl"],
            }
        },
    }
    rows = [line for line in peers_table(results).splitlines() if line.startswith("| 1/2/3x8")]
    assert len(rows) == 3
    assert rows[1].endswith("| 5.00× | 0.25× |")
    assert rows[2] == "| 1/2/3x8 | verl | out of memory | | | | | | |"
    assert len({row.count("|") for row in rows}) == 1


def test_learner_table_leaves_out_what_was_not_measured() -> None:
    report = {
        "machine": {"processor": "P", "torch": "2", "load_average": 0.5},
        "model": {"name": "demo", "parameters": 135e6},
        "num_threads": 2,
        "compute_dtype": "float32",
        "shared_prompt_speedup": {"a": 3.0, "b": 1.25},
    }
    table = learner_table(report)
    assert "| a | 3.00× |" in table
    assert "| b | 1.25× |" in table
    assert "peak" not in table


def test_learner_table_shows_the_peak_that_each_shape_was_measured_against() -> None:
    by_shape = {"a": 0.5, "b": 0.25}
    report = {
        "machine": {"processor": "P", "torch": "2", "load_average": 0.5},
        "model": {"name": "demo", "parameters": 135e6},
        "num_threads": 2,
        "compute_dtype": "float32",
        "tokens_per_second": by_shape,
        "peak_memory_bytes": by_shape,
        "matmul_peak_share": by_shape,
        "matmul_peak_flops": {"a": 100e9, "b": 120e9},
    }
    table = learner_table(report)
    assert "| a | 0 | 0.0 GB | 50% | 100 GFLOP/s |" in table
    assert "| b | 0 | 0.0 GB | 25% | 120 GFLOP/s |" in table
    assert table.endswith("load average 0.5 at the start.")
    # Files of one peak kept that of the last shape alone, and the load then.
    old = learner_table(report | {"matmul_peak_flops": 120e9})
    assert "matmul peak 120 GFLOP/s (of the last shape)" in old
    assert old.endswith("load average 0.5 at the start (of the last shape).")


def test_table_without_its_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tables.TABLES, "gone", ("benchmarks/gone.json", peers_table))
    with pytest.raises(ValueError, match=r"benchmarks/gone\.json"):
        rendered("<!-- table: gone -->\n<!-- end: gone -->")
