"""What a study has measured."""

from dataclasses import dataclass

from asympo.lab.cell import CellResult
from asympo.lab.presets.plan import Grid


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that was measured."""

    tuning: list[CellResult]
    chosen: dict[str, float]
    """Constant of each arm that was tuned."""
    grids: list[tuple[Grid, list[CellResult]]]
