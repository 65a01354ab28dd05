"""Announcing policies, waiting for them, and telling the fleet which are bad."""

import bisect
import json
import time
from collections.abc import Sequence

from asympo.common.foreign.numbers import parse_whole
from asympo.common.rollout_log.access import RunAccess, number, text
from asympo.common.rollout_log.types import BadPolicy, Fence, PolicyAnnouncement

_MAX_REASON_CHARS = 500


class Policies:
    """Announcements travel through the broker, weights never do."""

    def __init__(self, run: RunAccess) -> None:
        self._run = run

    def announce(
        self, fence: Fence, *, step: int, digest: str, policy_fence: int | None = None
    ) -> PolicyAnnouncement:
        """Makes a published checkpoint known; announcing the newest one again changes nothing.

        `policy_fence`: that it was published under, where that is not the current one.
        """
        published_under = fence.number if policy_fence is None else policy_fence
        reply = self._run.call_fenced(fence, "announce_policy", step, digest, published_under)
        return PolicyAnnouncement(
            step=step, fence=number(reply[2]), digest=digest, published_at_seconds=number(reply[1]) / 1000
        )

    def latest(self) -> PolicyAnnouncement | None:
        """The newest announcement; None before the first."""
        return self._latest()[0]

    def wait(self, after: PolicyAnnouncement | None, timeout_seconds: float) -> PolicyAnnouncement | None:
        """Blocks until the newest announcement is not `after`; None when the time passed first."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            latest, entry_id = self._latest()
            if latest is not None and latest != after:
                return latest
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._run.broker.blocking_read(
                self._run.key("policies"), after_id=entry_id, max_count=1, block_seconds=left
            )

    def publish_times(self) -> list[float]:
        """When each policy was first announced, oldest first; the newest few thousand."""
        times: dict[int, float] = {}
        for _entry_id, fields in self._run.broker.read_range(
            self._run.key("policies"), first_id="-", max_count=10_000
        ):
            times.setdefault(number(fields.get("step")), number(fields.get("at_ms")) / 1000)
        return sorted(times.values())

    def num_after(self, step: int) -> int:
        """How many distinct policies of higher steps were announced."""
        return number(self._run.broker.command("ZCOUNT", self._run.key("policy_steps"), f"({step}", "+inf"))

    def mark_bad(self, *, step: int, fence: int, reason: str, holder: str) -> None:
        """Tells everyone not to serve a policy; the first report is kept."""
        report = json.dumps({"reason": reason[:_MAX_REASON_CHARS], "holder": holder})
        self._run.call("mark_bad_policy", f"{fence}:{step}", report)

    def bad(self) -> list[BadPolicy]:
        """Every policy reported bad, by fence and step."""
        found = []
        flat = self._run.call("list_bad_policies")
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            fence, _, step = text(name).partition(":")
            named = parse_whole(fence), parse_whole(step)
            at_ms, _, report = text(value).partition(":")
            fields = self._run.read_object("bad_policies", report)
            if named[0] is None or named[1] is None or fields is None:
                continue
            found.append(
                BadPolicy(
                    step=named[1],
                    fence=named[0],
                    reason=str(fields.get("reason", "")),
                    holder=str(fields.get("holder", "")),
                    at_seconds=number(at_ms) / 1000,
                )
            )
        return sorted(found, key=lambda bad: (bad.fence, bad.step))

    def _latest(self) -> tuple[PolicyAnnouncement | None, str]:
        names = ("policy_step", "policy_fence", "policy_digest", "policy_at_ms", "policy_entry")
        step, fence, digest, at_ms, entry_id = self._run.learner_fields(*names)
        if step is None:
            return None, "0"
        announcement = PolicyAnnouncement(
            step=number(step),
            fence=number(fence),
            digest=text(digest),
            published_at_seconds=number(at_ms) / 1000,
        )
        return announcement, text(entry_id)


def queue_staleness(appended_at_seconds: float, publish_times: Sequence[float]) -> int:
    """Policies announced after an entry was appended; `publish_times` ascending."""
    return len(publish_times) - bisect.bisect_right(publish_times, appended_at_seconds)
