"""Breadth first through every interleaving of the small protocol."""

from collections import deque
from dataclasses import dataclass, replace

from tests.protocol.model import Protocol, Rules
from tests.protocol.state import State, Violation


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search saw."""

    num_states: int
    depth: int
    """Actions from the start to the last state looked at."""
    is_complete: bool
    """Whether every reachable state was looked at."""
    violation: str = ""
    trace: tuple[str, ...] = ()
    """The shortest way to it."""


def search(rules: Rules, *, max_states: int) -> Found:
    """Looks at states in the order of their distance, until one breaks a promise or there are enough."""
    protocol, start = Protocol(rules), rules.start
    came_from: dict[State, tuple[State, str] | None] = {start: None}
    finishes: set[State] = set()
    waiting, depth = deque([(start, 0)]), 0
    while waiting and len(came_from) <= max_states:
        state, depth = waiting.popleft()
        try:
            check(rules, state)
            check_progress(rules, state, finishes)
            found = list(protocol.actions(state))
        except Violation as violation:
            return Found(
                num_states=len(came_from),
                depth=depth,
                is_complete=False,
                violation=str(violation),
                trace=trace_to(state, came_from),
            )
        for name, after in found:
            if after not in came_from:
                came_from[after] = (state, name)
                waiting.append((after, depth + 1))
    return Found(num_states=len(came_from), depth=depth, is_complete=not waiting)


def trace_to(state: State, came_from: dict[State, tuple[State, str] | None]) -> tuple[str, ...]:
    """Names of the actions from the start to a state."""
    names = []
    while (step := came_from[state]) is not None:
        state, name = step
        names.append(name)
    return tuple(reversed(names))


def check(rules: Rules, state: State) -> None:
    """The promises of every single state. Raises Violation."""
    broker = state.broker
    leased = [prompt for _token, prompt in broker.leases]
    if not state.was_rolled_back and len(leased) + len(broker.open) > rules.capacity + state.num_reopened:
        raise Violation(f"{len(leased)} leased and {len(broker.open)} open, capacity is {rules.capacity}")
    numbers = [entry.sequence for entry in broker.log]
    if numbers != sorted(set(numbers)):
        raise Violation(f"numbers are not in order: {numbers}")
    if not state.was_rolled_back:
        durable = frozenset[int]().union(*(s.trained for s in state.disk if s.sequence <= broker.committed))
        lost = state.appended - {entry.prompt for entry in broker.log} - durable
        if lost:
            raise Violation(f"acknowledged prompts {set(lost)} are neither in the log nor in a durable state")


def check_progress(rules: Rules, state: State, finishes: set[State]) -> None:
    """From here everything can still be answered, trained and committed. Raises Violation.

    Follows a fair schedule: whoever was lost is replaced, leases expire, each part does its next thing.
    """
    protocol = Protocol(replace(rules, max_tokens=10**6, max_fences=10**6))
    path = []
    for _ in range(80):
        path.append(state)
        if state in finishes or is_finished(rules, state):
            finishes.update(path)
            return
        after = _fair_action(protocol, state)
        if after is None:
            raise Violation("nothing can happen any more and not everything is trained")
        state = after
    raise Violation("nothing leads to the end any more")


def _fair_action(protocol: Protocol, state: State) -> State | None:
    """The next useful thing, in the order of a step."""
    owner = next(
        (n for n, one in enumerate(state.learners) if one is not None and protocol._fenced(state, n)), None
    )
    for number, learner in enumerate(state.learners if owner is None else ()):
        if learner is not None and (after := protocol.reconcile(state, number)) is not None:
            return after
    if owner is None:
        for number, learner in enumerate(state.learners):
            if learner is None:
                return protocol.take_over(state, number)
        return protocol.crash(state, 0)
    for verb in ("publish", "free", "train", "save", "commit"):
        if (after := getattr(protocol, verb)(state, owner)) is not None and after != state:
            return after
    for number, held in enumerate(state.generators):
        if held is not None:
            return protocol.append(state, number)
    if state.broker.leases:
        return protocol.expire(state, state.broker.leases[0][0])
    return protocol.lease(state, 0)


def is_finished(rules: Rules, state: State) -> bool:
    """Every prompt is in a durable state that the broker knows of."""
    every = frozenset(range(rules.num_prompts))
    return any(s.trained == every and s.sequence <= state.broker.committed for s in state.disk)
