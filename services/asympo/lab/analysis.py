"""From cells to what the study says. Plain numbers: every rule here was fixed with the preset."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from asympo.lab.arms import find_arm
from asympo.lab.cell import CellResult, CellSpec
from asympo.lab.presets.plan import COLLAPSE_SHARE, MOONSHOT_SHARE, Grid
from asympo.lab.results import Results

_LATE_SHARE = 1 / 3
"""Imbalance, gradient norm and entropy are given for the last third of a run's steps."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the cells of one row share: everything but the seed."""

    task: str
    arm: str
    constant: float
    staleness: int
    kind: str
    learning_rate: float
    optimizer: str
    compute_dtype: str
    steps: int

    @classmethod
    def of(cls, result: CellResult) -> "Setting":
        spec = result.spec
        return cls(**{name: getattr(spec, name) for name in cls.__dataclass_fields__})


def has_collapsed(result: CellResult) -> bool:
    """Final accuracy below half of the start's, or a number that was not finite."""
    start = result.evaluations[0]["accuracy"]
    return result.final_accuracy is None or result.final_accuracy < COLLAPSE_SHARE * start


def by_setting(cells: Iterable[CellResult]) -> dict[Setting, list[CellResult]]:
    """Cells in order of their seeds."""
    found: dict[Setting, list[CellResult]] = {}
    for cell in cells:
        found.setdefault(Setting.of(cell), []).append(cell)
    return {setting: sorted(each, key=lambda cell: cell.spec.seed) for setting, each in found.items()}


def row_of(setting: Setting, cells: Sequence[CellResult]) -> dict[str, Any]:
    """One arm at one staleness and learning rate, seeds individually and their median."""
    finals = [_final(cell) for cell in cells]
    collapsed = [has_collapsed(cell) for cell in cells]
    row = {name: getattr(setting, name) for name in setting.__dataclass_fields__}
    return row | {
        "constant_name": find_arm(setting.arm).constant_name,
        "seeds": [cell.spec.seed for cell in cells],
        "final_accuracy": finals,
        "median_accuracy": median(finals),
        "collapsed": collapsed,
        "has_mostly_collapsed": sum(collapsed) * 2 > len(collapsed),
        "response_tokens": median(cell.evaluations[-1]["response_tokens"] for cell in cells),
        "kl_to_start": median(cell.evaluations[-1]["kl_to_start"] for cell in cells),
        **{name: _late_median(cells, name) for name in ("nll_ratio", "grad_norm", "entropy", "reward")},
    }


def summarise(results: Results, *, confirming_seeds: Collection[int] = ()) -> dict[str, Any]:
    """The study as one JSON object; grids of confirming seeds alone are rows of their own."""
    cells = cells_of(results.grids)
    rows = rows_of(cells_of(_explored(results.grids, confirming_seeds)))
    confirmation = rows_of(
        cells_of(each for each in results.grids if each[0].is_confirmation(confirming_seeds))
    )
    starts = {cell.spec.task: cell.evaluations[0]["accuracy"] for cell in cells}
    return {
        "made_by": made_by([*results.tuning, *cells]),
        "start_accuracy": starts,
        "collapse_rule": f"final accuracy below {COLLAPSE_SHARE:g} of the start's, or not finite",
        "tuning": tuning_table(results),
        "results": rows,
        "collapse_window": collapse_windows(rows or confirmation),
        "moonshot": moonshot(rows, confirmation),
        "confirmation": confirmation,
    }


def made_by(cells: Iterable[CellResult]) -> list[dict[str, Any]]:
    """How many cells each version on each device has made, most first; no versions where cells say none."""
    counts = Counter(tuple(sorted(cell.made_by.items())) for cell in cells)
    return [{"versions": dict(versions), "cells": count} for versions, count in counts.most_common()]


def cells_of(grids: Iterable[tuple[Grid, Sequence[CellResult]]]) -> list[CellResult]:
    """Every cell once: grids share them."""
    return list({cell.spec: cell for _, each in grids for cell in each}.values())


def _explored(
    grids: Iterable[tuple[Grid, Sequence[CellResult]]], confirming_seeds: Collection[int]
) -> list[tuple[Grid, Sequence[CellResult]]]:
    """Grids that do not confirm what others found."""
    return [each for each in grids if not each[0].is_confirmation(confirming_seeds)]


def rows_of(cells: Iterable[CellResult]) -> list[dict[str, Any]]:
    """A row for every setting."""
    return [row_of(setting, each) for setting, each in by_setting(cells).items()]


def collapse_windows(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """For every arm, where more than half of the seeds collapsed; ages fixed, AdamW, float32, short task."""
    windows: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if not is_plain(row):
            continue
        windows.setdefault(row["arm"], [])
        if row["has_mostly_collapsed"]:
            windows[row["arm"]].append(
                {
                    "staleness": row["staleness"],
                    "learning_rate": row["learning_rate"],
                    "constant": row["constant"],
                    "collapsed": sum(row["collapsed"]),
                    "seeds": len(row["seeds"]),
                }
            )
    return windows


def is_plain(row: dict[str, Any]) -> bool:
    """A row of the main setting, without a switch."""
    return (row["kind"], row["optimizer"], row["compute_dtype"], row["task"]) == (
        "fixed", "adamw", "float32", "short",
    )  # fmt: skip


def moonshot(
    rows: Sequence[dict[str, Any]], confirmation: Sequence[dict[str, Any]] = ()
) -> dict[str, Any] | None:
    """Current-policy-only settings at the greatest staleness against the best synchronous setting.

    `confirmed` is the same comparison on fresh seeds, for every setting that passes: it counts only if it
    passes there too. Empty while nothing passed, or what passed was not run again.
    """
    fresh, stale = _contenders(rows)
    if not fresh or not stale:
        return None
    best_fresh, best_stale = (max(each, key=_median_of) for each in (fresh, stale))
    fresh_again, stale_again = _contenders(confirmation)
    passed = {_setting_name(row) for row in stale if _share(row, best_fresh) >= MOONSHOT_SHARE}
    confirmed = [
        {**_named(row), "seeds": row["seeds"], "share": _share(row, max(fresh_again, key=_median_of))}
        for row in stale_again
        if fresh_again and _setting_name(row) in passed
    ]
    return {
        "staleness": best_stale["staleness"],
        "best_synchronous": _named(best_fresh),
        "best_current_policy_only": _named(best_stale),
        "share": _share(best_stale, best_fresh),
        "needed": MOONSHOT_SHARE,
        "has_passed": bool(passed),
        "best_synchronous_again": _named(max(fresh_again, key=_median_of)) if fresh_again else None,
        "confirmed": confirmed,
        "is_reached": any(each["share"] >= MOONSHOT_SHARE for each in confirmed),
    }


def passing_specs(
    grids: Iterable[tuple[Grid, Sequence[CellResult]]], *, confirming_seeds: Collection[int]
) -> list[CellSpec]:
    """One cell of every setting that passes the moonshot before it is confirmed."""
    cells = cells_of(_explored(grids, confirming_seeds))
    rows = {_setting_name(row_of(setting, each)): each for setting, each in by_setting(cells).items()}
    fresh, stale = _contenders(rows_of(cells))
    if not fresh:
        return []
    best = max(fresh, key=_median_of)
    return [rows[_setting_name(row)][0].spec for row in stale if _share(row, best) >= MOONSHOT_SHARE]


def _contenders(rows: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Synchronous rows of any arm, and current-policy-only rows at the greatest staleness."""
    plain = [row for row in rows if is_plain(row)]
    greatest = max((row["staleness"] for row in plain), default=0)
    stale = [row for row in plain if row["staleness"] == greatest and greatest]
    return [row for row in plain if row["staleness"] == 0], [
        row for row in stale if not find_arm(row["arm"]).needs_behaviour
    ]


def _share(row: dict[str, Any], best: dict[str, Any]) -> float:
    return _median_of(row) / _median_of(best)


def _setting_name(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in Setting.__dataclass_fields__)


def tuning_table(results: Results) -> dict[str, Any]:
    """What each arm's constant was chosen from."""
    table: dict[str, Any] = {}
    for arm, constant in results.chosen.items():
        runs = [cell for cell in results.tuning if cell.spec.arm == arm]
        table[arm] = {
            "constant_name": find_arm(arm).constant_name,
            "chosen": constant,
            "runs": len(runs),
            "candidates": {
                f"{candidate:g}": _mean([_final(cell) for cell in runs if cell.spec.constant == candidate])
                for candidate in dict.fromkeys(find_arm(arm).candidates)
            },
        }
    return table


def best_row(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The row with the highest median."""
    return max(rows, key=_median_of, default=None)


def _final(cell: CellResult) -> float:
    return 0.0 if cell.final_accuracy is None else cell.final_accuracy


def _late_median(cells: Sequence[CellResult], name: str) -> float | None:
    values = []
    for cell in cells:
        late = cell.steps[-max(1, round(len(cell.steps) * _LATE_SHARE)) :]
        values += [step[name] for step in late if step.get(name) is not None]
    return median(values) if values else None


def _median_of(row: dict[str, Any]) -> float:
    return float(row["median_accuracy"])


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: row[key] for key in ("arm", "constant", "learning_rate", "median_accuracy", "final_accuracy")
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
