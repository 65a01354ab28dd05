"""docs/performance.md and docs/models.md show what the benchmarks wrote, and nothing else."""

import json

import pytest
from asympo.bench import tables
from asympo.bench.tables import PAGES, ROOT, TABLES, learner_table, peers_table, rendered


def test_tables_of_the_page_are_those_of_the_committed_results() -> None:
    pages = [page.read_text() for page in PAGES]
    for name in TABLES:
        assert sum(f"<!-- table: {name} -->\n\n|" in page for page in pages) == 1
    assert [rendered(page) for page in pages] == pages, "repair: .venv/bin/python -m asympo.bench.tables"


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
