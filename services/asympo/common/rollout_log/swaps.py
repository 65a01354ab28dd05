"""Whose turn it is to load a policy: a fleet is never all in a swap, and a bad policy meets one of it."""

import math

from asympo.common.rollout_log.access import RunAccess, text


class Swaps:
    """One holder proves a policy, then shares of the fleet follow. A claim that is not renewed expires."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def claim(self, holder: str, *, step: int, fence: int, share: float, seconds: float) -> bool | None:
        """Whether the holder may load the policy now, for so long unless it claims again; None: it is bad."""
        percent = math.ceil(100 * share)
        reply = self._run.call("claim_swap", holder, f"{fence}:{step}", int(1000 * seconds), percent)
        return {"WAIT": False, "BAD": None}.get(text(reply[0]), True)

    def proved(self, holder: str, *, step: int, fence: int) -> None:
        """The holder serves the policy, whether it had claimed it or not: the others may follow."""
        self._run.call("end_swap", holder, f"{fence}:{step}")

    def give_up(self, holder: str) -> None:
        """The holder loads nothing any more."""
        self._run.call("end_swap", holder, "")
