"""What policies take where they are shared, and what that adds to a step: from rows of real learners."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from asympo.bench.pipeline_run import started_run

MIN_STEPS = 3
"""Of a run: fewer show no difference behind the whole policy that comes first."""
_WARM_STEPS = 2
"""Left out of times: first calls are slower."""
_LORA_STEPS = 2
_RATES = {"delta_ratio_lr_1e_5": 1e-5, "delta_ratio_lr_1e_6": 1e-6}
_LORA_RATE = 2e-4
_Rows = Sequence[dict[str, Any]]


def measure_publishing(
    model: Path, directory: Path, *, num_steps: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Four runs with the simulated engine: one for each rate, one that publishes nothing, an adapter."""

    def rows_of(name: str, num_steps: int, **learner: Any) -> _Rows:
        say(f"{name}: {num_steps} steps")
        values = _values(model, directory, name=name, total_steps=num_steps, learner=learner)
        with started_run(values, source="asympo bench reload") as run:
            run.wait(lambda: len(run.rows) >= num_steps, what="the steps", seconds=60.0 * num_steps)
            return run.rows

    # What the last step publishes is in no row.
    by_rate = {
        name: rows_of(f"rate-{rate:g}", num_steps + 1, learning_rate=rate) for name, rate in _RATES.items()
    }
    quiet = rows_of("unpublished", num_steps + 1, learning_rate=1e-5, publish_every=num_steps + 1)
    adapter = rows_of("adapter", _LORA_STEPS + 1, learning_rate=_LORA_RATE, lora={"rank": 16})
    published = by_rate["delta_ratio_lr_1e_5"]
    return {
        **{name: delta_ratio(rows) for name, rows in by_rate.items()},
        "adapter_ratio": _sizes(adapter)[-1] / max(_sizes(published)),
        "publish_overhead_ratio": _step_seconds(published) / _step_seconds(quiet) - 1,
        "policy_bytes": max(_sizes(published)),
        "step_seconds": _step_seconds(published),
    }


def delta_ratio(rows: _Rows) -> float | None:
    """Mean size of the differences over that of a whole policy; None without one."""
    sizes = _sizes(rows)
    deltas = [size for size in sizes if size < max(sizes) / 2]
    return statistics.fmean(deltas) / max(sizes) if deltas else None


def _sizes(rows: _Rows) -> list[int]:
    return [row["publish_bytes"] for row in rows if row["publish_bytes"]]


def _step_seconds(rows: _Rows) -> float:
    return statistics.median(row["busy_seconds"] for row in rows[_WARM_STEPS:])


def _values(
    model: Path, directory: Path, *, name: str, total_steps: int, learner: dict[str, Any]
) -> dict[str, Any]:
    return {
        "run": {
            "name": name,
            "directory": str(directory),
            "evaluate": False,
            "use_gpus": False,
            "model": str(model),
            "task": {"name": "addition"},
            "sampling": {"max_tokens": 16},
        },
        "view": {"kind": "none"},
        "learner": {
            "group_size": 4,
            "groups_per_step": 4,
            "total_steps": total_steps,
            # What is published late must be, before it is saved.
            "save_every": total_steps,
            **learner,
        },
        "generator": {
            "engine": "simulated",
            "max_groups_in_flight": 8,
            # Quick, so that a step never waits; next to no group without signal.
            "simulated": {
                "seconds_per_token": 0.001,
                "length_mean_tokens": 8,
                "first_accuracy": 0.5,
                "accuracy_per_step": 0.0,
            },
        },
    }
