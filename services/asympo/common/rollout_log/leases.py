"""Asking for work and answering it: a lease is credit, claim and prompt in one."""

import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.types import AppendOutcome, AppendResult, Lease, RefusalReason, Refused

MIN_APART_BYTES = 4096
"""Payloads from this size on are not sent through a script, which costs the broker 4 microseconds a KiB."""
_MAX_RENEWED_AT_ONCE = 500
_STORED = re.compile(rb"(\d{1,15})-(\d{1,15})\|(-?\d{1,15})\|\d+\|(.*)", re.DOTALL)
"""As the scripts keep a lease: group id, policy step, when it was granted, holder."""
_POLICY_REASONS = (RefusalReason.STALE_POLICY, RefusalReason.NOT_STARTED)


class Leases:
    """The generator's side: prompts out, groups in."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def acquire(self, *, holder: str, policy_step: int, run_id: str = "") -> Lease | Refused:
        """Asks for one prompt. `policy_step` is the policy the holder serves now.

        `run_id`: of the run that the holder has joined, if it knows it: another one of the same name refuses
        it as one that has not started. Raises BrokerFull when the broker could not take the group either.
        """
        token = secrets.token_hex(16)
        reply = self._run.call("acquire", token, policy_step, holder, run_id)
        if reply[0] == b"REFUSED":
            return Refused(
                reason=RefusalReason(text(reply[1])),
                retry_after_seconds=number(reply[2]) / 1000,
                wake_id=text(reply[3]),
                policy_id=text(reply[4]),
            )
        group_id = text(reply[1])
        epoch, _, index = group_id.partition("-")
        return Lease(
            group_id=group_id,
            epoch=int(epoch),
            index=int(index),
            token=token,
            expires_in_seconds=number(reply[2]) / 1000,
            policy_step=policy_step,
            total_steps=number(reply[3]),
            is_apart=bool(number(reply[4])),
        )

    def wait_for_slot(self, timeout_seconds: float, *, refused: Refused | None = None) -> None:
        """Blocks until something happened that may let a refused asker succeed, or its time has come.

        `refused`: the refusal to wait on; events since then count, so none is missed. Without it only
        events from now on count. Returns after its `retry_after_seconds` or the time-out at the latest.
        """
        after = {self._run.key("wake"): refused.wake_id if refused else self._newest_wake_id()}
        if refused and refused.reason in _POLICY_REASONS:
            after[self._run.key("policies")] = refused.policy_id
        wait_seconds = min(timeout_seconds, refused.retry_after_seconds) if refused else timeout_seconds
        deadline = time.monotonic() + wait_seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._run.broker.wait_for_entry(after, block_seconds=left):
                return

    def find(self, token: str, *, holder: str) -> Lease | None:
        """The lease of `holder` that a token proves, as the broker has it; None where there is none."""
        (stored,) = self._run.broker.command("HMGET", self._run.key("leases"), token)
        parts = _STORED.fullmatch(stored or b"")
        if parts is None or text(parts[4]) != holder:
            return None
        epoch, index = int(parts[1]), int(parts[2])
        return Lease(
            group_id=f"{epoch}-{index}",
            epoch=epoch,
            index=index,
            token=token,
            # Not known: that is the deadline's, which whoever asked first keeps.
            expires_in_seconds=0.0,
            policy_step=int(parts[3]),
        )

    def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """Extends leases by `lease_seconds`, within `max_lease_seconds` of their grant.

        Returns those that are lost: stop work on them.
        """
        lost = []
        for start in range(0, len(leases), _MAX_RENEWED_AT_ONCE):
            chunk = leases[start : start + _MAX_RENEWED_AT_ONCE]
            reply = self._run.call("renew", *(lease.token for lease in chunk))
            lost += [lease for lease, is_kept in zip(chunk, reply, strict=True) if not is_kept]
        return lost

    def append(self, lease: Lease, payload: bytes, *, producer: str) -> AppendResult:
        """Appends one encoded group under the next number and ends its lease, or leaves nothing in the log.

        Calling it again with the same lease is safe: the second call finds the first. Raises BrokerFull when
        the broker is out of memory: keep the lease renewed and try again.
        """
        is_apart = lease.is_apart and len(payload) >= MIN_APART_BYTES and self._put_apart(lease, payload)
        reply = self._run.call("append", lease.token, b"" if is_apart else payload, producer)
        outcome = AppendOutcome(text(reply[0]).lower())
        return AppendResult(
            outcome=outcome,
            sequence=number(reply[1]) or None,
            generation_staleness=number(reply[2]),
            generation_staleness_steps=number(reply[3]),
            no_slot=_no_slot(*reply[4:6]) if len(reply) > 4 else None,
        )

    def hand_back(self, lease: Lease, *, reason: str, is_prompt_failure: bool = False) -> bool:
        """Gives a prompt back to be issued again; returns False when the lease was lost already.

        `is_prompt_failure`: the prompt itself is at fault; after `max_prompt_failures` of those it is set
        aside for its epoch.
        """
        return bool(number(self._run.call("hand_back", lease.token, int(is_prompt_failure), reason)[0]))

    def _put_apart(self, lease: Lease, payload: bytes) -> bool:
        """Whether the payload lies under the lease's token now; never in the place of another one there.

        An earlier attempt has left one if it does not: then this one goes through the script.
        """
        key = self._run.key("payloads")
        return number(self._run.broker.command("HSETNX", key, lease.token, payload)) == 1

    def _newest_wake_id(self) -> str:
        newest = self._run.broker.newest(self._run.key("wake"), max_count=1)
        return str(newest[0][0]) if newest else "0"


def _no_slot(retry_ms: Any, wake_id: Any) -> Refused:
    return Refused(
        reason=RefusalReason.NO_CAPACITY,
        retry_after_seconds=number(retry_ms) / 1000,
        wake_id=text(wake_id),
        policy_id="0-0",
    )
