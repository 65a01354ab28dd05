"""Who may generate: leases and open groups against capacity, as the rollout log counts them."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """An appended group."""

    group_id: int
    has_signal: bool


@dataclass(kw_only=True, slots=True)
class SimulatedLog:
    """Slots and the log of one run: append turns a lease into an open group, publishing its step frees it."""

    capacity: int
    leases: dict[int, float] = field(default_factory=dict)
    """Group id: time at which the lease expires; infinite while its holder lives and renews it."""
    open: set[int] = field(default_factory=set)
    backlog: deque[Group] = field(default_factory=deque)
    """Appended and not yet read."""
    num_granted: int = 0
    num_expired: int = 0

    @property
    def num_free(self) -> int:
        return self.capacity - len(self.leases) - len(self.open)

    def acquire(self) -> int | None:
        """A lease, or None while leases and open groups fill the capacity."""
        if self.num_free <= 0:
            return None
        self.num_granted += 1
        self.leases[self.num_granted] = float("inf")
        return self.num_granted

    def append(self, group: Group) -> None:
        """The holder's answer: the slot passes from lease to open."""
        del self.leases[group.group_id]
        self.open.add(group.group_id)
        self.backlog.append(group)

    def lose_holder(self, group_id: int, *, expires_at: float) -> None:
        """Its holder died: nobody renews the lease any more."""
        self.leases[group_id] = expires_at

    def hand_back(self, group_id: int) -> None:
        """Its holder gives it up at once."""
        del self.leases[group_id]

    def expire(self, now: float) -> None:
        """Leases that ran out free their slot."""
        gone = [group_id for group_id, at in self.leases.items() if at <= now]
        for group_id in gone:
            del self.leases[group_id]
        self.num_expired += len(gone)

    def free(self, group_ids: list[int]) -> None:
        """Slots of groups that were trained, or never will be."""
        self.open.difference_update(group_ids)
