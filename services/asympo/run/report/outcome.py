"""How a supervised run ended, as its supervisor tells it."""

from dataclasses import dataclass

from asympo.common.errors import AsympoError
from asympo.run.held_out.measurements import HeldOutMeasurements
from asympo.run.processes.totals import Totals


@dataclass(frozen=True, kw_only=True)
class LastPolicy:
    """What became of the policy after the last step."""

    step: int | None
    """None when there was none."""
    is_served: bool
    wait_seconds: float
    """Until it was served, or given up."""
    problem: str = ""
    """Why its accuracy is not known."""


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """How a supervised run ended."""

    is_finished: bool
    """The run did all its steps; False when it was stopped or failed, and can go on."""
    failure: AsympoError | None
    """Why it cannot go on as it is."""
    warnings: tuple[str, ...]
    """What its services warned about, one line each with a count."""
    step: int
    totals: Totals
    held_out: HeldOutMeasurements | None
    last_policy: LastPolicy | None
    """None when nobody looked: the run goes on, or measures nothing."""
    killed: tuple[str, ...]
    """Processes that did not stop in their time."""
