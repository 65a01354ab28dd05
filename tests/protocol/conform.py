"""The same actions on the real scripts: after each one the broker must hold what the model holds."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from asympo.common.clock import SystemClock
from asympo.common.errors import Fenced, SequenceGap
from asympo.common.lifecycle import StopSignal
from asympo.common.rollout_log import (
    AppendOutcome,
    CommitRecord,
    Lease,
    Refused,
    RunConfig,
    RunLog,
    RunState,
    permuted_index,
)
from asympo.common.rollout_log.keys import NOUNS
from asympo.common.rollout_log.leases import MIN_APART_BYTES
from asympo.common.trained_ids import TrainedIds
from asympo.learner.log.session import LogSession
from asympo.learner.progress import Progress

from tests.protocol.model import Protocol, Rules
from tests.protocol.state import NOBODY, Broker, Learner, Saved, State, highest_fence

SEED = 3
TOO_OLD = -5
"""A policy that nobody serves: who says so is refused a lease, after expired ones were taken back."""


class RealLog:
    """A run on a real broker that is led through the model's actions."""

    def __init__(self, log: RunLog, rules: Rules) -> None:
        self.log, self.rules, self.state = log, rules, rules.start
        self._protocol = Protocol(rules)
        self._leases: dict[int, Lease] = {}
        self._sessions: dict[int, LogSession] = {}
        self._dump: dict[str, bytes | None] = {}
        self._config = RunConfig(
            run=log.run,
            group_size=2,
            groups_per_step=rules.capacity,
            max_groups_per_step=rules.capacity,
            max_staleness=0,
            num_prompts=rules.num_prompts,
            num_epochs=1,
            seed=SEED,
            model="tiny",
        )
        log.state.create_or_join(self._config)
        log.state.set(RunState.RUNNING)

    def do(self, name: str) -> bool:
        """One action on both; False where the model says that it is impossible. Raises AssertionError."""
        after = self._protocol.do(self.state, name)
        if after is None:
            return False
        verb, _, number = name.partition(" ")
        getattr(self, f"_{verb}")(after, *([int(number)] if number else []))
        self.state = after
        self._compare(name)
        return True

    def refuses_zombies(self) -> bool:
        """Every learner that lost its fence is told so by each script; False when there is none."""
        zombies = [
            number
            for number, learner in enumerate(self.state.learners)
            if learner is not None and self.state.broker.owner != number
        ]
        for number in zombies:
            fence, log = self._sessions[number].fence, self.log
            ids = [self._id(0)]
            calls: tuple[Callable[[], object], ...] = (
                partial(log.commits.free, fence, ids),
                partial(log.policies.announce, fence, step=9, digest="d9"),
                partial(log.commits.commit, fence, sequence=0, state_name="s", step=9, group_ids=ids),
            )
            for call in calls:
                _expect_fenced(call, is_fenced=True)
        self._compare("zombies")
        return bool(zombies)

    # --- generators ------------------------------------------------------------------------------------

    def _lease(self, after: State, number: int) -> None:
        lease = self.log.leases.acquire(holder=f"gen-{number}", policy_step=self.state.broker.policy)
        held = after.generators[number]
        assert isinstance(lease, Lease), lease
        assert held is not None
        assert lease.group_id == self._id(held.prompt)
        self._leases[held.token] = lease

    def _append(self, after: State, number: int) -> None:
        held = self.state.generators[number]
        assert held is not None
        payload = b"p" * (MIN_APART_BYTES if held.token % 2 else 1)
        result = self.log.leases.append(self._leases[held.token], payload, producer=f"gen-{number}")
        if after.broker != self.state.broker:
            assert (result.outcome, result.sequence) == (AppendOutcome.APPENDED, after.broker.last)
        else:
            assert result.outcome in (AppendOutcome.DUPLICATE, AppendOutcome.LEASE_LOST)

    _append_unheard = _append

    def _forget(self, after: State, number: int) -> None:
        """Nothing reaches the broker."""

    def _expire(self, after: State, token: int) -> None:
        self.log.broker.client.zadd(self.log.access.key("deadlines"), {self._leases[token].token: 1}, xx=True)
        assert isinstance(self.log.leases.acquire(holder="old", policy_step=TOO_OLD), Refused)

    # --- learners --------------------------------------------------------------------------------------

    def _take_over(self, after: State, number: int) -> None:
        learner, log = _must(after.learners[number]), self.log
        log.state.create_or_join(self._config)
        session = self._sessions[number] = LogSession(
            run_log=log,
            fence=log.fence.take(f"learner-{number}", take_over=True, at_least=highest_fence(self.state)),
            stop=StopSignal(),
            clock=SystemClock(),
            trained=self._ids(learner),
            progress=Progress(),
        )
        self._stand(session, learner)
        session.reconcile()
        self._publish(after, number)
        session.set_state(RunState.RUNNING)

    def _reconcile(self, after: State, number: int) -> None:
        before = _must(self.state.learners[number])

        session = self._sessions[number]
        self._stand(session, before)
        _expect_fenced(session.reconcile, is_fenced=after.learners[number] is None)
        assert after.learners[number] is None or self.log.state.get() is RunState.RUNNING

    def _train(self, after: State, number: int) -> None:
        before, learner = _must(self.state.learners[number]), after.learners[number]
        session = self._sessions[number]

        def call() -> None:
            entries = self.log.reader.read(
                after_sequence=before.sequence, max_count=1, block_seconds=0, fence=session.fence
            )
            assert learner is not None
            assert [entry.sequence for entry in entries] == [learner.sequence]
            trained = learner.trained - before.trained
            assert not trained or {entry.group_id for entry in entries} == {self._id(p) for p in trained}
            session.hold([self._id(prompt) for prompt in trained])

        _expect_fenced(call, is_fenced=learner is None)

    def _publish(self, after: State, number: int) -> None:
        step = _must(after.learners[number]).step
        session = self._sessions[number]
        session.announce(step=step, digest=f"d{step}", policy_fence=session.fence.number)

    def _free(self, after: State, number: int) -> None:
        held = _must(self.state.learners[number]).held
        self._sessions[number].free([self._id(prompt) for prompt in held])

    def _save(self, after: State, number: int) -> None:
        """Nothing reaches the broker."""

    _crash = _save

    def _commit(self, after: State, number: int) -> None:
        durable = _must(self.state.learners[number]).durable
        assert durable is not None
        record = _record(durable)
        assert record is not None
        session = self._sessions[number]
        ids = [self._id(prompt) for prompt in sorted(durable.trained)]
        self.log.commits.commit(
            session.fence,
            sequence=record.sequence,
            state_name=record.state_name,
            step=record.step,
            group_ids=ids,
        )
        session.free(ids)

    def _stand(self, session: LogSession, learner: Learner) -> None:
        """The session where the model's learner stands."""
        record = _record(learner.durable)
        if record is not None:
            session.resume_from(record)
        session.progress.sequence, session.trained = learner.sequence, self._ids(learner)

    # --- the broker ------------------------------------------------------------------------------------

    def _copy(self, after: State) -> None:
        client = self.log.broker.client
        self._dump = {noun: client.dump(self.log.access.key(noun)) for noun in NOUNS}

    def _roll_back(self, after: State) -> None:
        if self.state.copy == Broker():
            # A broker that keeps nothing on disk comes back without the run, and as another process.
            self.log.broker.client.delete(*map(self.log.access.key, NOUNS))
            for session in self._sessions.values():
                session._fence = replace(session.fence, server_id="before the restart")
            return
        pipe = self.log.broker.client.pipeline(transaction=True)
        for noun, content in self._dump.items():
            pipe.delete(self.log.access.key(noun))
            if content is not None:
                pipe.restore(self.log.access.key(noun), 0, content)
        pipe.execute()

    def _restart(self, after: State) -> None:
        """Learners hear of it, and it has lost nothing."""

    def _compare(self, name: str) -> None:
        broker, log, key = self.state.broker, self.log, self.log.access.key
        client = log.broker.client
        stats = log.stats.read()
        leased = [stored.partition(b"|")[0].decode() for stored in client.hvals(key("leases"))]
        queued = [group_id.decode() for group_id in client.lrange(key("reissue"), 0, -1)]
        expected_queue = [self._id(prompt) for prompt in broker.reissue]
        if self.state.was_rolled_back:
            queued, expected_queue = sorted(queued), sorted(expected_queue)
        real = {
            "issued": stats.epoch * self.rules.num_prompts + stats.position,
            "leased": sorted(leased),
            "queued": queued,
            "open": sorted(member.decode() for member in client.smembers(key("open"))),
            "log": [(e.sequence, e.group_id + e.problem) for e in log.reader.iter_entries()],
            "last": stats.last_sequence,
            "fence": stats.fence,
            "committed": stats.committed_sequence,
            "policy": _policy(log),
        }
        model = {
            "issued": broker.issued,
            "leased": sorted(self._id(prompt) for _token, prompt in broker.leases),
            "queued": expected_queue,
            "open": sorted(self._id(prompt) for prompt in broker.open),
            "log": [(entry.sequence, self._id(entry.prompt)) for entry in broker.log],
            "last": broker.last,
            "fence": broker.fence,
            "committed": broker.committed,
            "policy": broker.policy,
        }
        differences = {noun: (real[noun], model[noun]) for noun in real if real[noun] != model[noun]}
        assert not differences, f"after {name}: (real, model) are {differences}"

    def _id(self, prompt: int) -> str:
        index = permuted_index(seed=SEED, epoch=0, position=prompt, num_prompts=self.rules.num_prompts)
        return f"0-{index}"

    def _ids(self, learner: Learner) -> TrainedIds:
        trained = TrainedIds(num_prompts=self.rules.num_prompts)
        for prompt in learner.trained:
            trained.add(self._id(prompt))
        return trained


def _must(learner: Learner | None) -> Learner:
    assert learner is not None
    return learner


def _policy(log: RunLog) -> int:
    policy = log.policies.latest()
    return policy.step if policy else NOBODY


def _record(saved: Saved | None) -> CommitRecord | None:
    if saved is None:
        return None
    return CommitRecord(
        sequence=saved.sequence, state_name=f"step-{saved.step}", step=saved.step, fence=saved.fence
    )


def _expect_fenced(call: Callable[[], object], *, is_fenced: bool) -> None:
    try:
        call()
    except (Fenced, SequenceGap):
        assert is_fenced
    else:
        assert not is_fenced
