"""From cells to what the study says. Plain numbers: every rule here was fixed with the preset."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from asympo.lab.arms import find_arm
from asympo.lab.cell import CellResult
from asympo.lab.presets.plan import COLLAPSE_SHARE, MOONSHOT_SHARE
from asympo.lab.study import Results

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


def summarise(results: Results) -> dict[str, Any]:
    """The study as one JSON object."""
    # Grids share cells.
    cells = list({cell.spec: cell for _, each in results.grids for cell in each}.values())
    rows = [row_of(setting, each) for setting, each in by_setting(cells).items()]
    starts = {cell.spec.task: cell.evaluations[0]["accuracy"] for cell in cells}
    return {
        "start_accuracy": starts,
        "collapse_rule": f"final accuracy below {COLLAPSE_SHARE:g} of the start's, or not finite",
        "tuning": tuning_table(results),
        "results": rows,
        "collapse_window": collapse_windows(rows),
        "moonshot": moonshot(rows),
    }


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


def moonshot(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Best current-policy-only setting at the greatest staleness against the best synchronous one."""
    plain = [row for row in rows if is_plain(row)]
    greatest = max((row["staleness"] for row in plain), default=0)
    fresh = [row for row in plain if row["staleness"] == 0]
    stale = [
        row for row in plain if row["staleness"] == greatest and not find_arm(row["arm"]).needs_behaviour
    ]
    if not greatest or not fresh or not stale:
        return None
    best_fresh, best_stale = (max(each, key=_median_of) for each in (fresh, stale))
    share = best_stale["median_accuracy"] / best_fresh["median_accuracy"]
    return {
        "staleness": greatest,
        "best_synchronous": _named(best_fresh),
        "best_current_policy_only": _named(best_stale),
        "share": share,
        "needed": MOONSHOT_SHARE,
        "is_reached": share >= MOONSHOT_SHARE,
    }


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
