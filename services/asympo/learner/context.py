"""What all parts of one learner share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asympo.common.clock import Clock
from asympo.common.lifecycle import StopSignal
from asympo.common.tracing import Tracing
from asympo.learner.control import LearnerControl
from asympo.learner.gpu_turn import GpuTurn
from asympo.learner.metrics import LearnerMetrics
from asympo.learner.progress import Progress
from asympo.learner.settings import LearnerSettings

if TYPE_CHECKING:
    from asympo.learner.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class LearnerContext:
    """Made once when the process starts; a part takes what it needs from it."""

    settings: LearnerSettings
    """What it was told."""
    control: LearnerControl
    """What the doors read, and where they ask."""
    metrics: LearnerMetrics
    """Its counters."""
    tracing: Tracing
    """Spans of groups; off unless asked for."""
    stop: StopSignal
    """Set once, when it is to end."""
    clock: Clock
    """Time."""
    ranks: "Ranks | None"
    """The ranks it trains with; None when it is alone."""
    gpu: GpuTurn
    """Its turns on a GPU that it shares."""

    @property
    def progress(self) -> Progress:
        """Where it stands."""
        return self.control.progress
