"""Who owns a run: one learner, by a number that grows and a random token."""

import secrets

from asympo.common.errors import RunHasLearner
from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.types import Fence


class Fences:
    """Taking, keeping and giving up ownership."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def take(
        self,
        holder: str,
        *,
        take_over: bool = False,
        heartbeat_seconds: float = 10.0,
        at_least: int = 0,
        total_steps: int | None = None,
    ) -> Fence:
        """Becomes the run's learner with a number above every earlier one and above `at_least`.

        `at_least`: the newest fence found in training states and checkpoints, so that a broker that lost
        its memory cannot hand out an old number. `total_steps`: that the learner will make; every lease
        tells. Raises RunHasLearner while another's heartbeat is alive, unless `take_over`.
        """
        token = secrets.token_hex(16)
        arguments = (token, holder, int(heartbeat_seconds * 1000), int(take_over), at_least, total_steps or 0)
        reply = self._run.call("take_fence", *arguments)
        if reply[0] == b"HELD":
            raise RunHasLearner(
                f"run {self._run.name!r} has a live learner ({text(reply[2])}, fence {number(reply[1])}, "
                f"heartbeat valid for another {number(reply[3]) / 1000:.1f} s): stop it, wait, or "
                "give --take-over"
            )
        return Fence(
            number=number(reply[1]),
            token=token,
            holder=holder,
            heartbeat_seconds=heartbeat_seconds,
            server_id=text(reply[2]),
            run_id=text(reply[3]),
            total_steps=total_steps or 0,
        )

    def heartbeat(self, fence: Fence, *, trained_sequence: int = 0) -> None:
        """Keeps ownership for another `heartbeat_seconds`; `trained_sequence` feeds the backlog figure.

        Raises Fenced when another learner has taken over, BrokerChanged when a reconcile is due.
        """
        arguments = (int(fence.heartbeat_seconds * 1000), trained_sequence)
        self._run.call_fenced(fence, "heartbeat", *arguments)

    def release(self, fence: Fence) -> None:
        """Gives ownership up, so that the next learner need not wait; no error when it was lost already."""
        self._run.call("release", fence.number, fence.token)
