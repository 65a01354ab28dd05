"""Which faults, in which order, in which windows: a pure function of seed and number."""

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

MIN_OF_EACH, MIN_IN_WINDOW, FULL_RUN = 15, 20, 200
"""What a full run has of every kind, in every window, and what counts as one."""


class FaultKind(StrEnum):
    """Everything that is done to the system."""

    KILL_GENERATOR = "kill_generator"
    KILL_LEARNER = "kill_learner"
    KILL_BROKER = "kill_broker"
    STOP_PAST_LEASE = "stop_past_lease"
    LINK_DELAY = "link_delay"
    LINK_DROP = "link_drop"
    LINK_RESET = "link_reset"
    SLOW_FSYNC = "slow_fsync"
    BROKER_ROLLBACK = "broker_rollback"
    DISK_FULL = "disk_full"
    TORN_CHECKPOINT = "torn_checkpoint"
    DUPLICATE_APPEND = "duplicate_append"
    CLOCK_JUMP = "clock_jump"
    ZOMBIE_LEARNER = "zombie_learner"


class Window(StrEnum):
    """Two moments between which a crash is most likely to lose or double something."""

    APPEND_REPLY = "append_to_reply"
    """The broker has the group, its generator does not know."""
    PUBLISH_FREE = "publish_to_free"
    """The policy is visible, the slots of its groups are not free."""
    SAVE_COMMIT = "save_to_commit"
    """The state is durable, the broker does not know."""
    TURN_PROOF = "turn_to_proof"
    """A generator may load a policy and the others wait for its proof."""


NEEDS_SHIM = frozenset({FaultKind.SLOW_FSYNC, FaultKind.DISK_FULL, FaultKind.CLOCK_JUMP})
"""Kinds that need the C library's calls intercepted."""

_ANYWHERE = {FaultKind.KILL_BROKER, FaultKind.LINK_RESET, FaultKind.LINK_DROP}
KINDS_OF_WINDOW = {
    Window.APPEND_REPLY: frozenset({FaultKind.KILL_GENERATOR, *_ANYWHERE}),
    Window.PUBLISH_FREE: frozenset({FaultKind.KILL_LEARNER, *_ANYWHERE}),
    Window.SAVE_COMMIT: frozenset({FaultKind.KILL_LEARNER, *_ANYWHERE}),
    Window.TURN_PROOF: frozenset({FaultKind.KILL_GENERATOR, *_ANYWHERE}),
}
ALWAYS_IN = {FaultKind.ZOMBIE_LEARNER: Window.SAVE_COMMIT}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One entry of the schedule."""

    number: int
    """From 1."""
    kind: FaultKind
    window: Window | None
    """Where it has to hit; None for any instant."""
    seed: int
    """Of the choices inside the fault."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Minimum:
    """What has to have been observed for a run to count."""

    of_each: int
    in_window: int


def minimum_for(num_faults: int, kinds: Collection[FaultKind]) -> Minimum:
    """As many of each as fit, up to what a full run has."""
    of_each = min(MIN_OF_EACH, num_faults // len(kinds))
    # A short run has few of the kinds that can hit a window.
    in_window = num_faults // (10 if num_faults >= FULL_RUN else 14)
    return Minimum(of_each=of_each, in_window=min(MIN_IN_WINDOW, in_window))


def make_schedule(*, num_faults: int, seed: int, kinds: Sequence[FaultKind]) -> list[Fault]:
    """The faults in their order.

    A full run is as long as it has to be for the minimum of every kind, which may be more than asked for.
    """
    rng = random.Random(f"schedule/{seed}")
    if num_faults >= FULL_RUN:
        num_faults = max(num_faults, MIN_OF_EACH * len(kinds))
    least = minimum_for(num_faults, kinds)
    chosen = [kind for kind in kinds for _ in range(least.of_each)]
    chosen += [rng.choice(list(kinds)) for _ in range(num_faults - len(chosen))]
    rng.shuffle(chosen)
    windows: list[Window | None] = [ALWAYS_IN.get(kind) for kind in chosen]
    for window in reachable_windows(kinds):
        _fill(window, chosen, windows, least.in_window, rng)
    return [
        Fault(number=number, kind=kind, window=window, seed=rng.randrange(2**32))
        for number, (kind, window) in enumerate(zip(chosen, windows, strict=True), start=1)
    ]


def reachable_windows(kinds: Collection[FaultKind]) -> list[Window]:
    """Windows that a run of these kinds can hit."""
    return [
        window
        for window in Window
        if KINDS_OF_WINDOW[window] & set(kinds) or any(ALWAYS_IN.get(kind) is window for kind in kinds)
    ]


def _fill(
    window: Window,
    chosen: Sequence[FaultKind],
    windows: list[Window | None],
    at_least: int,
    rng: random.Random,
) -> None:
    """Moves as many faults into the window as it lacks, those that fit into the fewest others first."""
    missing = at_least - Counter(windows)[window]
    free = [
        place
        for place, kind in enumerate(chosen)
        if windows[place] is None and kind in KINDS_OF_WINDOW[window]
    ]
    rng.shuffle(free)
    free.sort(key=lambda place: sum(chosen[place] in kinds for kinds in KINDS_OF_WINDOW.values()))
    for place in free[: max(0, missing)]:
        windows[place] = window
