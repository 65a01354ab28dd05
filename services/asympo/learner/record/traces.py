"""The learner's spans in the traces of groups: how long each waited, its step, its policy."""

from collections.abc import Sequence

from asympo.common.clock import Clock
from asympo.common.tracing import Tracing
from asympo.learner.log.segment import LogSegment

_NS = 1_000_000_000


class GroupTraces:
    """Turns the clock readings of the training thread into spans; does nothing while tracing is off."""

    def __init__(self, *, tracing: Tracing, clock: Clock) -> None:
        self._tracing = tracing
        self._clock = clock
        # Once: the two clocks cannot be read at the same instant, and the order of our spans must not suffer.
        self._offset_seconds = min(_offset(clock) for _ in range(5))[1]

    def trained(self, segment: LogSegment, *, step: int, begun: float) -> None:
        """A step on this segment has just ended; `begun` is monotonic."""
        if not self._tracing.is_on:
            return
        begun_ns, ended_ns = self._wall_ns(begun), self._wall_ns(self._clock.monotonic_seconds())
        for group in segment.groups:
            group_id = group.record.group_id
            at_entry = {"asympo.sequence": group.sequence}
            # Broker time; a clock that is ahead of ours must not turn the wait around.
            appended_ns = min(int(group.appended_at_seconds * _NS), begun_ns)
            self._tracing.record(
                group_id, "queue", begun_ns=appended_ns, ended_ns=begun_ns, attributes=at_entry
            )
            in_step = {**at_entry, "asympo.step": step, "asympo.has_signal": group.has_signal}
            self._tracing.record(group_id, "train", begun_ns=begun_ns, ended_ns=ended_ns, attributes=in_step)

    def published(self, group_ids: Sequence[str], *, step: int, begun: float, ended: float) -> None:
        """The first policy that shows what was learnt from these groups is visible; times are monotonic."""
        if not self._tracing.is_on:
            return
        begun_ns, ended_ns = self._wall_ns(begun), self._wall_ns(ended)
        for group_id in group_ids:
            self._tracing.record(
                *(group_id, "publish"),
                begun_ns=begun_ns,
                ended_ns=ended_ns,
                attributes={"asympo.policy_step": step},
            )

    def _wall_ns(self, monotonic_seconds: float) -> int:
        return int((self._offset_seconds + monotonic_seconds) * _NS)


def _offset(clock: Clock) -> tuple[float, float]:
    """How long both readings took, and wall time minus monotonic time."""
    before = clock.monotonic_seconds()
    wall = clock.now_seconds()
    after = clock.monotonic_seconds()
    return after - before, wall - (before + after) / 2
