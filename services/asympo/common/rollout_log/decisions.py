"""The broker's copy of what a run has decided about its arithmetic; only the learner reads its form."""

from asympo.common.rollout_log.access import RunAccess
from asympo.common.rollout_log.types import Fence


class DecisionCopy:
    """For who trains the run's log and does not share its storage."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def replace(self, fence: Fence, content: bytes) -> None:
        """Replaces the copy; the same again changes nothing."""
        self._run.call_fenced(fence, "mirror_decisions", content)

    def read(self) -> bytes | None:
        """The copy; None when there is none."""
        content: bytes | None = self._run.broker.command("GET", self._run.key("decisions"))
        return content
