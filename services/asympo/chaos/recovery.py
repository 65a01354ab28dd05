"""How long a killed learner takes to go on, beyond loading its libraries and its model."""

from collections.abc import Sequence

from asympo.chaos.faults.machines import RECONCILED
from asympo.chaos.processes import Life, Supervised

LIBRARIES_LOADED = "Libraries are loaded"
MODEL_LOADED = "Model and training state are loaded"
CONSUMED = ("Step ", "Groups ")
"""Beginnings of the lines that a learner writes when it has consumed groups."""
_RECOVERY_SECONDS = 120.0


async def recovery_seconds(process: Supervised, *, killed_at: float) -> float:
    """From the kill to the next consumed groups, less what its lives since took to load.

    Raises TimeoutError.
    """
    await process.until(
        lambda: _consumed_at(process.lives, killed_at) is not None, timeout_seconds=_RECOVERY_SECONDS
    )
    consumed_at = _consumed_at(process.lives, killed_at)
    assert consumed_at is not None
    loading = sum(load_seconds(life) for life in process.lives if life.started_at > killed_at)
    return consumed_at - killed_at - loading


def load_seconds(life: Life) -> float:
    """Time a learner spent on libraries, model and weights, by its own lines; 0 for what it did not reach."""
    libraries, reconciled = life.when(LIBRARIES_LOADED), life.when(RECONCILED)
    loaded = life.when(MODEL_LOADED)
    total = libraries - life.started_at if libraries is not None else 0.0
    if reconciled is not None and loaded is not None:
        total += loaded - reconciled
    return total


def _consumed_at(lives: Sequence[Life], killed_at: float) -> float | None:
    times = (
        life.when(start, after=killed_at)
        for life in lives
        if life.started_at > killed_at
        for start in CONSUMED
    )
    return min((at for at in times if at is not None), default=None)
