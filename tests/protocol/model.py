"""The rollout log's protocol in small: what the scripts and a learner do, on values that can be compared.

A state is a tuple of tuples, an action a function from state to state. One prompt is one group is one step.
Nothing here talks to a broker: `search.py` looks at interleavings, `conform.py` repeats some on a real one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.protocol.state import (
    NOBODY,
    Broker,
    Entry,
    Held,
    Learner,
    Saved,
    State,
    Violation,
    highest_fence,
    state_to_resume,
    with_generator,
    with_learner,
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Size of the world, and what is switched off to see that it is missed."""

    num_prompts: int = 2
    num_generators: int = 2
    num_learners: int = 2
    capacity: int = 1
    max_staleness: int = 0
    max_tokens: int = 4
    max_fences: int = 3
    may_roll_back: bool = False
    may_restart: bool = False
    has_dedupe: bool = True
    has_fence: bool = True
    frees_after_publish: bool = True
    has_reconcile: bool = True
    announces_again: bool = True
    keeps_held: bool = True

    @property
    def start(self) -> State:
        return State(Broker(), (None,) * self.num_generators, (None,) * self.num_learners, frozenset())


class Protocol:
    """Every action that may happen. Each returns the next state, or None where it cannot happen."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def actions(self, state: State) -> Iterator[tuple[str, State]]:
        """Every action that is possible, by name, and where it leads. Raises Violation."""
        for number in range(self.rules.num_generators):
            for verb in ("lease", "append", "append_unheard", "forget"):
                if (after := getattr(self, verb)(state, number)) is not None:
                    yield f"{verb} {number}", after
        for token, _prompt in state.broker.leases:
            yield f"expire {token}", self.expire(state, token)
        for number in range(self.rules.num_learners):
            for verb in ("take_over", "train", "publish", "free", "save", "commit", "crash", "reconcile"):
                if (after := getattr(self, verb)(state, number)) is None:
                    continue
                if after.broker != state.broker and number != after.broker.owner:
                    raise Violation(f"learner {number} is a zombie and changes the broker")
                yield f"{verb} {number}", after
        if self.rules.may_restart and not state.has_restarted:
            yield "restart", self.restart(state)
        if self.rules.may_roll_back and not state.was_rolled_back:
            if state.copy is None:
                yield "copy", state._replace(copy=state.broker)
            elif state.copy != state.broker:
                yield "roll_back", self.roll_back(state)

    def do(self, state: State, name: str) -> State | None:
        """One action by its name."""
        verb, _, number = name.partition(" ")
        if verb == "copy":
            return state._replace(copy=state.broker)
        if verb == "roll_back":
            return self.roll_back(state)
        if verb == "restart":
            return self.restart(state)
        after: State | None = getattr(self, verb)(state, int(number))
        return after

    # --- generators ------------------------------------------------------------------------------------

    def lease(self, state: State, number: int) -> State | None:
        broker = state.broker
        if state.generators[number] is not None or state.tokens >= self.rules.max_tokens:
            return None
        if broker.policy < 0 or len(broker.leases) + len(broker.open) >= self.rules.capacity:
            return None
        owner = state.learners[broker.owner] if broker.owner != NOBODY else None
        is_synchronous = self.rules.max_staleness == 0 and self.rules.has_fence
        if is_synchronous and owner is not None and owner.published != broker.policy:
            # Generators serve the newest policy on storage, whatever the broker has announced.
            return None
        if broker.reissue:
            prompt, broker = broker.reissue[0], broker._replace(reissue=broker.reissue[1:])
        elif broker.issued < self.rules.num_prompts:
            prompt, broker = broker.issued, broker._replace(issued=broker.issued + 1)
        else:
            return None
        broker = broker._replace(leases=(*broker.leases, (state.tokens, prompt)))
        held = Held(state.tokens, prompt)
        return with_generator(state._replace(broker=broker, tokens=state.tokens + 1), number, held)

    def append(self, state: State, number: int) -> State | None:
        after = self.append_unheard(state, number)
        return None if after is None else with_generator(after, number, None)

    def append_unheard(self, state: State, number: int) -> State | None:
        """The reply is lost: the generator will try again."""
        held, broker = state.generators[number], state.broker
        if held is None:
            return None
        is_leased = (held.token, held.prompt) in broker.leases
        is_answered = held.token in broker.answers
        if self.rules.has_dedupe and (is_answered or not is_leased):
            return state
        if held.prompt in state.appended and not state.was_rolled_back:
            raise Violation(f"prompt {held.prompt} is answered twice")
        entry = Entry(broker.last + 1, held.prompt, broker.policies)
        broker = broker._replace(
            log=(*broker.log, entry),
            last=entry.sequence,
            open=broker.open | {held.prompt},
            leases=tuple(lease for lease in broker.leases if lease[0] != held.token),
            answers=broker.answers | {held.token},
        )
        return state._replace(broker=broker, appended=state.appended | {held.prompt})

    def forget(self, state: State, number: int) -> State | None:
        """The generator dies; its lease is left to expire."""
        return None if state.generators[number] is None else with_generator(state, number, None)

    def expire(self, state: State, token: int) -> State:
        """The holder, if it lives, keeps what it holds and may come back late."""
        broker = state.broker
        prompt = dict(broker.leases)[token]
        leases = tuple(lease for lease in broker.leases if lease[0] != token)
        return state._replace(broker=broker._replace(leases=leases, reissue=(*broker.reissue, prompt)))

    # --- learners --------------------------------------------------------------------------------------

    def take_over(self, state: State, number: int) -> State | None:
        """A learner starts: fence, newest state, reconcile, publish."""
        broker = state.broker
        if state.learners[number] is not None or broker.fence >= self.rules.max_fences:
            return None
        newest = state_to_resume(state)
        fence = max(broker.fence, highest_fence(state)) + 1
        learner = Learner(
            fence=fence,
            history=broker.history,
            sequence=newest.sequence if newest else 0,
            step=newest.step if newest else 0,
            trained=newest.trained if newest else frozenset(),
            published=newest.step if newest else 0,
            durable=newest,
        )
        state = state._replace(broker=broker._replace(fence=fence, owner=number))
        if self.rules.has_reconcile:
            state = self._reconciled(state, learner)
        broker = state.broker
        if broker.policy != learner.step:
            broker = broker._replace(policy=learner.step, policies=broker.policies + 1)
        return with_learner(state._replace(broker=broker), number, learner)

    def reconcile(self, state: State, number: int) -> State | None:
        """A learner that hears that the broker went back in time."""
        learner, broker = state.learners[number], state.broker
        if learner is None or learner.history == broker.history:
            return None
        if broker.fence >= learner.fence and broker.owner != number:
            return with_learner(state, number, None)
        learner = learner._replace(history=broker.history)
        broker = broker._replace(fence=max(broker.fence, learner.fence), owner=number)
        is_next_kept = any(entry.sequence == learner.sequence + 1 for entry in broker.log)
        if broker.committed > learner.sequence and not is_next_kept:
            # Another learner went on and committed beyond it: it ends, and a new one resumes from that.
            return with_learner(state._replace(broker=broker), number, None)
        after = self._reconciled(state._replace(broker=broker), learner)
        if after.broker.policy != learner.published and self.rules.announces_again:
            broker = after.broker
            after = after._replace(
                broker=broker._replace(policy=learner.published, policies=broker.policies + 1)
            )
        return with_learner(after, number, learner._replace(fence=broker.fence))

    def _reconciled(self, state: State, learner: Learner) -> State:
        broker, trained = state.broker, learner.trained
        forked = {e.prompt for e in broker.log if e.sequence <= learner.sequence and e.prompt not in trained}
        log = tuple(e for e in broker.log if e.sequence > learner.sequence or e.prompt in trained)
        unread = {e.prompt for e in log if e.sequence > learner.sequence and e.prompt not in trained}
        leases = tuple(lease for lease in broker.leases if lease[1] not in trained)
        queued = tuple(prompt for prompt in broker.reissue if prompt not in trained)
        placed = {prompt for _token, prompt in leases} | set(queued) | unread | trained
        held = set(learner.held) if self.rules.keeps_held else set()
        issued = max(broker.issued, max(placed | forked, default=-1) + 1)
        missing = tuple(sorted(set(range(issued)) - placed))
        return state._replace(
            broker=broker._replace(
                issued=issued,
                reissue=queued + missing,
                leases=leases,
                open=frozenset(unread | held),
                log=log,
                last=max(broker.last, learner.sequence),
                committed=max(broker.committed, learner.durable.sequence if learner.durable else 0),
            ),
            num_reopened=state.num_reopened + len(unread - broker.open),
        )

    def train(self, state: State, number: int) -> State | None:
        """Reads the next entry and takes a step. Two steps are never between publications here."""
        learner = self._fenced(state, number)
        if learner is None:
            return self._out(state, number)
        if learner.step != learner.published and self.rules.frees_after_publish:
            return None
        entry = next((entry for entry in state.broker.log if entry.sequence > learner.sequence), None)
        if entry is None:
            return None
        if entry.prompt in learner.trained:
            if not state.was_rolled_back:
                raise Violation(f"prompt {entry.prompt} reaches the learner twice")
            return with_learner(state, number, learner._replace(sequence=entry.sequence))
        staleness = state.broker.policies - entry.policies
        if staleness > self.rules.max_staleness and not self._is_bound_void(state):
            raise Violation(f"prompt {entry.prompt} is trained {staleness} policies late")
        return with_learner(
            state,
            number,
            learner._replace(
                sequence=entry.sequence,
                step=learner.step + 1,
                trained=learner.trained | {entry.prompt},
                held=(*learner.held, entry.prompt),
            ),
        )

    def _is_bound_void(self, state: State) -> bool:
        """A take-over or a rollback announces policies that no step was waiting for."""
        return state.broker.fence > 1 or state.was_rolled_back

    def publish(self, state: State, number: int) -> State | None:
        learner = self._fenced(state, number)
        if learner is None or learner.step == learner.published:
            return None
        broker = state.broker._replace(policy=learner.step, policies=state.broker.policies + 1)
        return with_learner(state._replace(broker=broker), number, learner._replace(published=learner.step))

    def free(self, state: State, number: int) -> State | None:
        learner = self._fenced(state, number)
        if learner is None or not learner.held:
            return None
        if self.rules.frees_after_publish and learner.step != learner.published:
            return None
        broker = state.broker._replace(open=state.broker.open - set(learner.held))
        return with_learner(state._replace(broker=broker), number, learner._replace(held=()))

    def save(self, state: State, number: int) -> State | None:
        """Needs no broker: a zombie can do it."""
        learner = state.learners[number]
        if learner is None:
            return None
        saved = Saved(learner.fence, learner.step, learner.sequence, learner.trained)
        if learner.sequence == (learner.durable.sequence if learner.durable else 0):
            return None
        after = learner._replace(durable=saved, is_saved=True)
        return with_learner(state._replace(disk=state.disk | {saved}), number, after)

    def commit(self, state: State, number: int) -> State | None:
        learner = self._fenced(state, number)
        if learner is None or not learner.is_saved or learner.durable is None:
            return None
        saved, broker = learner.durable, state.broker
        if saved.sequence > broker.last or learner.published < saved.step:
            return None
        missed = {e.prompt for e in broker.log if e.sequence <= saved.sequence} - saved.trained
        if missed:
            raise Violation(f"prompts {missed} are committed and were never trained")
        if saved.sequence < broker.committed and not state.was_rolled_back:
            raise Violation("a commit goes back")
        broker = broker._replace(
            committed=max(broker.committed, saved.sequence),
            log=tuple(entry for entry in broker.log if entry.sequence > saved.sequence),
            open=broker.open - saved.trained,
        )
        return with_learner(
            state._replace(broker=broker),
            number,
            learner._replace(is_saved=False, held=tuple(set(learner.held) - saved.trained)),
        )

    def crash(self, state: State, number: int) -> State | None:
        return None if state.learners[number] is None else with_learner(state, number, None)

    def roll_back(self, state: State) -> State:
        assert state.copy is not None
        broker = state.copy._replace(history=state.broker.history + 1)
        return state._replace(broker=broker, copy=None, was_rolled_back=True)

    def restart(self, state: State) -> State:
        """The broker is another process, and lost nothing."""
        broker = state.broker._replace(history=state.broker.history + 1)
        return state._replace(broker=broker, has_restarted=True)

    def _fenced(self, state: State, number: int) -> Learner | None:
        """The learner, if the broker lets it act."""
        learner, broker = state.learners[number], state.broker
        if learner is None or not self.rules.has_fence:
            return learner
        if learner.history != broker.history or broker.owner != number or broker.fence != learner.fence:
            return None
        return learner

    def _out(self, state: State, number: int) -> State | None:
        """A learner that finds itself fenced ends."""
        learner, broker = state.learners[number], state.broker
        if learner is None or learner.history != broker.history:
            return None
        return with_learner(state, number, None)
