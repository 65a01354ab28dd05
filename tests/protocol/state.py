"""What the small rollout log is made of: values that can be compared and kept in sets."""

from typing import NamedTuple

NOBODY = -1


class Violation(AssertionError):
    """A promise is broken in this state."""


class Entry(NamedTuple):
    sequence: int
    prompt: int
    policies: int
    """Policies announced when it was appended."""


class Broker(NamedTuple):
    issued: int = 0
    """Prompts issued so far, in order."""
    reissue: tuple[int, ...] = ()
    leases: tuple[tuple[int, int], ...] = ()
    """(token, prompt), oldest first."""
    open: frozenset[int] = frozenset()
    log: tuple[Entry, ...] = ()
    last: int = 0
    answers: frozenset[int] = frozenset()
    fence: int = 0
    owner: int = NOBODY
    committed: int = 0
    policy: int = -1
    """Step of the newest policy."""
    policies: int = 0
    """Policies announced."""
    history: int = 0
    """Grows when the broker comes back with an older state."""


class Saved(NamedTuple):
    """A training state on disk."""

    fence: int
    step: int
    sequence: int
    trained: frozenset[int]


class Learner(NamedTuple):
    fence: int
    history: int
    sequence: int
    step: int
    trained: frozenset[int]
    held: tuple[int, ...] = ()
    """Trained, not yet freed."""
    published: int = 0
    durable: Saved | None = None
    """The newest state it loaded or saved."""
    is_saved: bool = False
    """Whether it saved that state itself and has not committed it."""


class Held(NamedTuple):
    token: int
    prompt: int


class State(NamedTuple):
    broker: Broker
    generators: tuple[Held | None, ...]
    learners: tuple[Learner | None, ...]
    disk: frozenset[Saved]
    tokens: int = 0
    """Leases granted so far."""
    copy: Broker | None = None
    """An older state that the broker may come back with."""
    appended: frozenset[int] = frozenset()
    """Prompts acknowledged as appended; no part of the system sees this."""
    num_reopened: int = 0
    """Groups trained and not saved before a take-over: they take slots again that were given away."""
    was_rolled_back: bool = False
    has_restarted: bool = False
    """Whether the broker did, and lost nothing."""


def highest_fence(state: State) -> int:
    """Of every state on disk; 0 for none."""
    return max((saved.fence for saved in state.disk), default=0)


def state_to_resume(state: State) -> Saved | None:
    """The newest, unless it covers less than the broker has committed: then the committed one."""
    newest = max(state.disk, key=lambda saved: (saved.fence, saved.step), default=None)
    if newest is None or newest.sequence >= state.broker.committed:
        return newest
    return max((saved for saved in state.disk if saved.sequence == state.broker.committed), default=newest)


def with_generator(state: State, number: int, held: Held | None) -> State:
    """The same with this in one generator's hands."""
    generators = list(state.generators)
    generators[number] = held
    return state._replace(generators=tuple(generators))


def with_learner(state: State, number: int, learner: Learner | None) -> State:
    """The same with one learner in another condition, or gone."""
    learners = list(state.learners)
    learners[number] = learner
    return state._replace(learners=tuple(learners))
