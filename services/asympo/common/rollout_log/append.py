"""Putting a finished group into the log."""

from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.records import AppendOutcome, AppendResult, Lease

APPEND_KEYS = "run log open leases deadlines answers reissue wake policy_steps failures"
"""KEYS of append.lua."""


class Appends(RunAccess):
    """The generator's side of answering a prompt."""

    def append(self, lease: Lease, payload: bytes, *, producer: str) -> AppendResult:
        """Appends one encoded group under the next number and ends its lease, or leaves nothing in the log.

        Calling it again with the same lease is safe: the second call finds the first. Raises BrokerFull when
        the broker is out of memory: keep the lease renewed and try again.
        """
        reply = self._call("append", APPEND_KEYS, lease.token, payload, producer)
        outcome = AppendOutcome(text(reply[0]).lower())
        return AppendResult(
            outcome=outcome,
            sequence=number(reply[1]) or None,
            generation_staleness=number(reply[2]),
            generation_staleness_steps=number(reply[3]),
        )
