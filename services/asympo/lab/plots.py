"""The report's pictures."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asympo.lab.analysis import by_setting, has_collapsed
from asympo.lab.cell import CellResult
from asympo.lab.presets.plan import COLLAPSE_SHARE

_COLOURS = ("#1b6ca8", "#e08e1b", "#b3261e", "#5a7d2b", "#6a4c93")
_DPI = 90
_WINDOW = 15
"""Steps that a curve of a step's own numbers is averaged over."""


def draw_all(cells: Sequence[CellResult], *, directory: Path) -> dict[str, Path]:
    """Curves of accuracy and reward, the imbalance ratio, the collapse map, and K times the learning rate."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = {
        "accuracy": _curves(cells, "accuracy", "held-out accuracy"),
        "reward": _curves(cells, "reward", "reward of the drawn responses"),
        "imbalance": _curves(cells, "nll_ratio", "mean NLL, negatives / positives", is_log=True),
        "collapse": _collapse_map(cells),
        "products": _products(cells),
    }
    paths = {}
    for name, figure in drawn.items():
        paths[name] = directory / f"{name}.png"
        figure.savefig(paths[name], dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
    return paths


def _curves(cells: Sequence[CellResult], column: str, label: str, *, is_log: bool = False) -> Figure:
    """A row for each learning rate, a column for each arm, a line for each staleness; thin: seeds."""
    arms, rates, ages = (_axis(cells, name) for name in ("arm", "learning_rate", "staleness"))
    figure, axes = plt.subplots(
        len(rates), len(arms), squeeze=False, sharex=True, sharey=True,
        figsize=(1.2 + 1.9 * len(arms), 0.7 + 1.6 * len(rates)),
    )  # fmt: skip
    for row, rate in enumerate(rates):
        for column_index, arm in enumerate(arms):
            axis = axes[row][column_index]
            for colour, age in zip(_COLOURS, ages, strict=False):
                chosen = [
                    cell
                    for cell in cells
                    if (cell.spec.arm, cell.spec.learning_rate, cell.spec.staleness) == (arm, rate, age)
                ]
                _lines(axis, chosen, column, colour=colour, label=f"K = {age}")
            if is_log:
                axis.set_yscale("log")
            axis.grid(alpha=0.25)
            axis.tick_params(labelsize=7)
            if row == 0:
                axis.set_title(arm, fontsize=9)
            if column_index == 0:
                axis.set_ylabel(f"lr {rate:g}", fontsize=8)
    axes[-1][0].legend(fontsize=7, frameon=False)
    figure.supxlabel("optimizer step", fontsize=8)
    figure.suptitle(label, fontsize=10)
    return figure


def _lines(axis: Axes, cells: Sequence[CellResult], column: str, *, colour: str, label: str) -> None:
    series = [_series(cell, column) for cell in cells]
    for steps, values in series:
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
    if series:
        shortest = min(len(steps) for steps, _ in series)
        middle = [median(values[index] for _, values in series) for index in range(shortest)]
        axis.plot(series[0][0][:shortest], middle, color=colour, linewidth=1.6, label=label)


def _series(cell: CellResult, column: str) -> tuple[list[int], list[float]]:
    rows: list[dict[str, Any]] = cell.evaluations if column in cell.evaluations[0] else cell.steps
    known = [(row["step"], row[column]) for row in rows if row.get(column) is not None]
    steps, values = [step for step, _ in known], [value for _, value in known]
    if rows is cell.steps:
        values = [
            sum(values[max(0, i - _WINDOW + 1) : i + 1]) / (i + 1 - max(0, i - _WINDOW + 1))
            for i in range(len(values))
        ]
    return steps, values


def _collapse_map(cells: Sequence[CellResult]) -> Figure:
    """Learning rate by staleness for every arm: median accuracy, and how many seeds collapsed."""
    arms, rates, ages = (_axis(cells, name) for name in ("arm", "learning_rate", "staleness"))
    figure, axes = plt.subplots(
        1, len(arms), squeeze=False, sharey=True, figsize=(1 + 1.9 * len(arms), 0.9 + 0.6 * len(rates))
    )
    highest = max((cell.final_accuracy or 0.0) for cell in cells)
    for axis, arm in zip(axes[0], arms, strict=True):
        table = [[float("nan")] * len(ages) for _ in rates]
        for row, rate in enumerate(rates):
            for column, age in enumerate(ages):
                chosen = [
                    cell
                    for cell in cells
                    if (cell.spec.arm, cell.spec.learning_rate, cell.spec.staleness) == (arm, rate, age)
                ]
                if not chosen:
                    continue
                table[row][column] = median(cell.final_accuracy or 0.0 for cell in chosen)
                failed = sum(has_collapsed(cell) for cell in chosen)
                text = f"{table[row][column]:.2f}" + (f"\n{failed}/{len(chosen)}" if failed else "")
                axis.text(column, row, text, ha="center", va="center", fontsize=7)
        axis.imshow(table, cmap="RdYlGn", vmin=0.0, vmax=highest, aspect="auto", origin="lower")
        axis.set_xticks(range(len(ages)), [str(age) for age in ages], fontsize=7)
        axis.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates], fontsize=7)
        axis.set_title(arm, fontsize=9)
    axes[0][0].set_ylabel("learning rate", fontsize=8)
    figure.supxlabel("K, optimizer steps", fontsize=8)
    figure.suptitle("final accuracy, median; below it, seeds that collapsed", fontsize=10)
    figure.subplots_adjust(top=0.72, bottom=0.24)
    return figure


def _products(cells: Sequence[CellResult]) -> Figure:
    """A panel for each arm, a colour for each learning rate, a point for each staleness above 0.

    The same vertical line in all of them: the smallest product at which most seeds of any arm collapsed.
    """
    arms, rates, ages = (_axis(cells, name) for name in ("arm", "learning_rate", "staleness"))
    settings = by_setting(cell for cell in cells if cell.spec.staleness)
    collapsed = [
        setting.staleness * setting.learning_rate
        for setting, found in settings.items()
        if 2 * sum(map(has_collapsed, found)) > len(found)
    ]
    figure, axes = plt.subplots(
        1, len(arms), squeeze=False, sharex=True, sharey=True, figsize=(1.2 + 2.6 * len(arms), 3.0)
    )
    start = median(cell.evaluations[0]["accuracy"] for cell in cells)
    for axis, arm in zip(axes[0], arms, strict=True):
        for colour, rate in zip(_COLOURS, rates, strict=False):
            points = [
                (age * rate, median(cell.final_accuracy or 0.0 for cell in found))
                for age in ages
                for setting, found in settings.items()
                if (setting.arm, setting.learning_rate, setting.staleness) == (arm, rate, age)
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=1, label=f"lr {rate:g}")
        axis.axhline(COLLAPSE_SHARE * start, color="grey", linewidth=0.8, linestyle=":")
        if collapsed:
            axis.axvline(min(collapsed), color="black", linewidth=0.8, linestyle="--")
        axis.set_xscale("log")
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=7)
        axis.set_title(arm, fontsize=9)
    axes[0][0].set_ylabel("final accuracy, median", fontsize=8)
    axes[0][-1].legend(fontsize=7, frameon=False)
    figure.supxlabel("K, optimizer steps, times the learning rate", fontsize=8)
    figure.suptitle(
        "below the dotted line a run has collapsed; dashed: the first product that did", fontsize=9
    )
    figure.subplots_adjust(top=0.82, bottom=0.2)
    return figure


def _axis(cells: Sequence[CellResult], name: str) -> list[Any]:
    values = dict.fromkeys(getattr(cell.spec, name) for cell in cells)
    return list(values) if name == "arm" else sorted(values)
