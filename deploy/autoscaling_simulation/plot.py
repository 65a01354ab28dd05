"""Pictures of simulated runs."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from deploy.autoscaling_simulation.simulation import Scenario, Trace

_WINDOW_SECONDS = 600.0


def _waiting_percent(trace: Trace) -> list[float]:
    """Share of the ten minutes before each scrape."""
    found, first = [], 0
    for last, time in enumerate(trace.times):
        while trace.times[first] < time - _WINDOW_SECONDS:
            first += 1
        seconds = trace.times[last] - trace.times[first]
        waited = trace.waited_seconds[last] - trace.waited_seconds[first]
        found.append(100 * waited / seconds if seconds else 100.0)
    return found


def draw(runs: Sequence[tuple[Scenario, Trace]], path: Path) -> None:
    """Replicas and the learner's waiting share over time, one pair of axes for each run."""
    columns = 3
    rows = -(-len(runs) // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(13, 3.6 * rows), height_ratios=[2, 1] * rows, squeeze=False
    )
    for number, (scenario, trace) in enumerate(runs):
        row, column = 2 * (number // columns), number % columns
        hours = [time / 3600 for time in trace.times]
        top, bottom = axes[row][column], axes[row + 1][column]
        top.step(hours, trace.replicas, where="post", label="replicas", color="#1f60c4", linewidth=1.6)
        if len(trace.by_pool) > 1:
            for pool, color in zip(trace.by_pool, ("#e0752d", "#ba43a9", "#705da0"), strict=False):
                top.step(hours, trace.by_pool[pool], where="post", label=pool, color=color, linewidth=1.2)
            top.legend(fontsize=7, loc="upper right")
        top.plot(hours, trace.ready, label="ready", color="#7eb26d", linewidth=0.9)
        top.axhline(scenario.max_replicas, color="#999999", linestyle=":", linewidth=1, label="limit")
        top.set_title(scenario.name, fontsize=10)
        top.set_ylim(0, scenario.max_replicas * 1.08)
        bottom.plot(hours, _waiting_percent(trace), color="#e24d42", linewidth=1)
        bottom.axhline(5, color="#999999", linestyle=":", linewidth=1)
        bottom.set_ylim(0, 30)
        bottom.set_xlabel("hours")
        if column == 0:
            top.set_ylabel("generators")
            bottom.set_ylabel("learner waits, %")
    axes[0][-1].legend(fontsize=8, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
